//! Compares the defaults of whole objects with those that a stock 1.35 server stores.

use serde_json::{Value, json};

use crate::json::Node;
use crate::schema::{Schema, apply_defaults, decode, encode};

fn stored(group: &str, kind: &str, object: Value) -> Value {
    let schema = Schema::of(group, "v1", kind).expect("in the table");
    let mut value = decode(schema, &Node::from(&object)).expect("decodes").value;
    apply_defaults(schema, &mut value);
    encode(schema, &mut value);
    value
}

#[test]
fn a_deployment_gets_the_defaults_of_stock_kubernetes() {
    let given = json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "0.5"}}}],
            "volumes": [{"name": "e"}, {"name": "v", "configMap": {"name": "x"}}]}}}});
    let container = json!({"name": "c", "image": "nginx", "imagePullPolicy": "Always",
        "ports": [{"containerPort": 80, "protocol": "TCP"}],
        "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1,
            "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
        "resources": {"limits": {"cpu": "500m"}},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"});
    assert_eq!(
        stored("apps", "Deployment", given),
        json!({"metadata": {}, "status": {}, "spec": {
            "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "a"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {
                "containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "v", "configMap": {"name": "x", "defaultMode": 420}}]}}}})
    );
}

#[test]
fn a_pod_requests_what_it_is_limited_to() {
    let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"},
        "requests": {"cpu": "100m"}}}]}});
    let pod = stored("", "Pod", pod);
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "100m", "memory": "1Gi"})
    );
    assert_eq!(pod["spec"]["enableServiceLinks"], json!(true));
}

#[test]
fn a_service_gets_target_ports_and_policies() {
    let service = stored("", "Service", json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}));
    assert_eq!(
        service["spec"],
        json!({"type": "NodePort", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
    );
}

#[test]
fn string_data_of_a_secret_becomes_data() {
    let secret = stored("", "Secret", json!({"stringData": {"a": "1"}, "data": {"b": "AAE="}}));
    assert_eq!(secret, json!({"metadata": {}, "type": "Opaque", "data": {"a": "MQ==", "b": "AAE="}}));
}

#[test]
fn amounts_finer_than_a_thousandth_round_up() {
    let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "0.0001"}}}]}});
    assert_eq!(stored("", "Pod", pod)["spec"]["containers"][0]["resources"]["requests"]["cpu"], json!("1m"));
}

#[test]
fn both_names_of_the_service_account_are_the_same() {
    let pod = stored("", "Pod", json!({"spec": {"serviceAccountName": "x", "containers": []}}));
    assert_eq!(pod["spec"]["serviceAccount"], json!("x"));
}
