//! Answers of a stock server to good and bad Pods, picked by hand.

use proto_api::field::ErrorList;
use serde_json::{Value, json};

use super::super::testing::{created, made, reported, updated, with};
use super::{PodStrategy, prepare_binding, prepare_ephemeral_containers, prepare_resize};
use super::{validate_ephemeral_containers, validate_resize};
use crate::registry::strategy::Strategy;

fn pod() -> Value {
    json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {
        "containers": [{"name": "c", "image": "example.com/app:v1", "ports": [{"containerPort": 80}],
            "env": [{"name": "A", "value": "1"}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "0.5", "memory": "1e8"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": 80}}}],
        "volumes": [{"name": "v", "configMap": {"name": "x"}}]}})
}

/// Returns the errors of the pod with the value at `pointer` in its spec replaced.
fn bad(pointer: &str, value: Value) -> Vec<String> {
    created("", "pods", &with(&pod(), &format!("/spec{pointer}"), value))
}

#[test]
fn a_good_pod_is_pending_with_a_class() {
    assert_eq!(created("", "pods", &pod()), Vec::<String>::new());
    assert_eq!(made("", "pods", &pod())["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
}

#[test]
fn what_is_missing_is_named() {
    for (pointer, value, expected) in [
        ("/containers", json!([]), vec!["spec.containers: Required value"]),
        (
            "/containers/0",
            json!({}),
            vec!["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
        ),
        (
            "/containers/0/livenessProbe",
            json!({}),
            vec!["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
        ),
        ("/containers/0/env/0", json!({}), vec!["spec.containers[0].env[0].name: Required value"]),
        ("/volumes/0/configMap", json!({}), vec!["spec.volumes[0].configMap.name: Required value"]),
        ("/volumes/0", json!({}), vec!["spec.volumes[0].name: Required value"]),
    ] {
        assert_eq!(bad(pointer, value), expected, "{pointer}");
    }
}

#[test]
fn requests_stay_within_limits() {
    assert_eq!(
        bad("/containers/0/resources/requests/cpu", json!("1.5")),
        [
            "spec.containers[0].resources.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of \
          500m"
        ]
    );
    assert_eq!(
        bad("/containers/0/resources/limits/cpu", json!(-1)),
        [
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.containers[0].resources.requests: Invalid value: \"100m\": must be less than or equal to cpu limit \
             of -1",
        ]
    );
    assert_eq!(
        bad("/containers/0/resources", json!({"requests": {"example.com/gpu": "1"}})),
        [
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources"
        ]
    );
}

#[test]
fn ports_are_numbers_or_names() {
    assert_eq!(
        bad("/containers/0/livenessProbe/httpGet/port", json!(0)),
        [
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive"
        ]
    );
    assert_eq!(bad("/containers/0/livenessProbe/httpGet/port", json!("")).len(), 2);
    assert_eq!(
        bad("/containers/0/ports/0/containerPort", json!(0)),
        ["spec.containers[0].ports[0].containerPort: Required value"]
    );
    let port = json!({"containerPort": 80, "hostPort": 8080});
    let duplicate = bad("/containers/0/ports", json!([port, port]));
    assert_eq!(duplicate, ["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//8080\""]);
}

#[test]
fn mounts_name_volumes_of_the_pod() {
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    assert!(bad("/containers/0/volumeMounts", json!([mount("v", "/a")])).is_empty());
    assert_eq!(
        bad("/containers/0/volumeMounts", json!([mount("w", "/a"), mount("v", "/a")])),
        [
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
        ]
    );
}

#[test]
fn a_volume_has_one_source() {
    let two = json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]);
    assert_eq!(
        bad("/volumes", two),
        ["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"]
    );
    let steps = json!([{"name": "v", "hostPath": {"path": "/a/../b"}}]);
    assert_eq!(
        bad("/volumes", steps),
        ["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"]
    );
    let files = json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "a", "items": [{"key": "k", "path": "f"}]}},
        {"downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]);
    assert_eq!(
        bad("/volumes", files),
        ["spec.volumes[0].projected: Invalid value: \"f\": conflicting duplicate paths"]
    );
}

#[test]
fn variables_come_from_one_place() {
    let from = |source: Value| bad("/containers/0/env", json!([{"name": "A", "valueFrom": source}]));
    assert_eq!(from(json!({})).len(), 1);
    assert!(from(json!({"fieldRef": {"fieldPath": "status.podIP"}})).is_empty());
    assert!(from(json!({"fieldRef": {"fieldPath": "metadata.labels['a']"}})).is_empty());
    assert_eq!(
        from(json!({"fieldRef": {"fieldPath": "spec.containers"}})),
        [
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.containers\": error converting \
          fieldPath: field label not supported: spec.containers"
        ]
    );
    assert_eq!(
        from(
            json!({"configMapKeyRef": {"name": "a", "key": "k"}, "secretKeyRef": {"name": "a", "key": "k"}})
        ),
        [
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a \
          time"
        ]
    );
}

#[test]
fn only_sidecars_have_probes_among_init_containers() {
    let init = |extra: Value| {
        let mut container = json!({"name": "i", "image": "i", "livenessProbe": {"tcpSocket": {"port": 1}}});
        if let (Some(to), Value::Object(from)) = (container.as_object_mut(), extra) {
            to.extend(from);
        }
        bad("/initContainers", json!([container]))
    };
    assert_eq!(
        init(json!({})),
        ["spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without \
          restartPolicy=Always"]
    );
    assert!(init(json!({"restartPolicy": "Always"})).is_empty());
    assert_eq!(
        init(json!({"name": "c", "restartPolicy": "Always"})),
        ["spec.initContainers[0].name: Duplicate value: \"c\""]
    );
}

#[test]
fn names_and_policies_of_the_spec_are_checked() {
    assert_eq!(
        bad("/dnsPolicy", json!("None")),
        ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]
    );
    assert_eq!(
        bad("/restartPolicy", json!("Sometimes")),
        [
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""
        ]
    );
    assert_eq!(
        bad("/activeDeadlineSeconds", json!(0)),
        ["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"]
    );
    assert_eq!(
        bad("/tolerations", json!([{"effect": "NoSchedule", "tolerationSeconds": 1}])),
        [
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which \
             means \"match all values and all keys\"",
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when \
             `tolerationSeconds` is set",
        ]
    );
    assert_eq!(bad("/hostname", json!("A.b")).len(), 1);
    assert_eq!(bad("/priorityClassName", json!("A")).len(), 2);
    assert_eq!(
        bad("/securityContext", json!({"runAsUser": -1, "sysctls": [{"name": "a..b", "value": "1"}]})).len(),
        2
    );
}

#[test]
fn spread_constraints_and_affinity_are_checked() {
    assert_eq!(
        bad(
            "/topologySpreadConstraints",
            json!([{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "x"}])
        ),
        [
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"x\": supported values: \
             \"DoNotSchedule\", \"ScheduleAnyway\"",
        ]
    );
    let required = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}]}}});
    assert_eq!(bad("/affinity", required).len(), 1);
}

#[test]
fn a_gated_pod_waits_unscheduled() {
    let mut gated = pod();
    gated["spec"]["schedulingGates"] = json!([{"name": "a"}]);
    let obj = made("", "pods", &gated);
    assert_eq!(obj["status"]["conditions"][0]["reason"], "SchedulingGated");
    gated["spec"]["nodeName"] = json!("n");
    assert_eq!(
        created("", "pods", &gated),
        ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]
    );
}

#[test]
fn an_update_may_change_the_image_and_add_tolerations() {
    let old = made("", "pods", &pod());
    let mut new = with(&pod(), "/spec/containers/0/image", json!("example.com/app:v2"));
    new["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    assert_eq!(updated("", "pods", &old, &new).1, Vec::<String>::new());
    let (_, found) = updated("", "pods", &old, &with(&pod(), "/spec/containers/0/env/0/value", json!("2")));
    assert_eq!(found.len(), 1);
    let text = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,";
    assert!(found[0].starts_with(text), "{found:?}");
    assert!(found[0].contains("-          \"value\": \"1\"\n+          \"value\": \"2\"\n"), "{found:?}");
    let (_, found) = updated("", "pods", &old, &with(&pod(), "/spec/containers", json!([])));
    assert_eq!(
        found,
        [
            "spec.containers: Required value",
            "spec.containers: Forbidden: pod updates may not add or remove containers"
        ]
    );
}

#[test]
fn a_deadline_only_gets_shorter() {
    let old = made("", "pods", &with(&pod(), "/spec/activeDeadlineSeconds", json!(10)));
    let later = with(&pod(), "/spec/activeDeadlineSeconds", json!(20));
    assert_eq!(
        updated("", "pods", &old, &later).1,
        ["spec.activeDeadlineSeconds: Invalid value: 20: must be less than or equal to previous value"]
    );
    let sooner = with(&pod(), "/spec/activeDeadlineSeconds", json!(5));
    assert!(updated("", "pods", &old, &sooner).1.is_empty());
}

#[test]
fn a_status_keeps_its_class_and_its_ended_containers() {
    let mut old = made("", "pods", &with(&pod(), "/spec/restartPolicy", json!("Never")));
    old["status"]["containerStatuses"] = json!([{"name": "c", "state": {"terminated": {"exitCode": 0}}}]);
    let found = reported(
        "",
        "pods",
        &old,
        json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "c", "state": {"running": {}}}],
               "podIPs": [{"ip": "x"}]}),
    );
    assert_eq!(
        found,
        [
            "status.qosClass: Invalid value: \"BestEffort\": field is immutable",
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state",
            "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ]
    );
}

#[test]
fn only_a_scheduled_running_pod_gets_a_grace_period() {
    let mut obj = made("", "pods", &pod());
    assert_eq!(PodStrategy.graceful_delete_seconds(&obj, Some(9)), Some(0));
    obj["spec"]["nodeName"] = json!("n");
    assert_eq!(PodStrategy.graceful_delete_seconds(&obj, None), Some(30));
    assert_eq!(PodStrategy.graceful_delete_seconds(&obj, Some(0)), Some(0));
    assert_eq!(PodStrategy.graceful_delete_seconds(&obj, Some(-3)), Some(1));
    obj["status"]["phase"] = json!("Succeeded");
    assert_eq!(PodStrategy.graceful_delete_seconds(&obj, None), Some(0));
}

#[test]
fn a_pod_is_bound_once() {
    let mut obj = made("", "pods", &pod());
    let binding = json!({"metadata": {"annotations": {"a": "b"}}, "target": {"name": "n"}});
    assert_eq!(prepare_binding(&mut obj, &binding, "2026-01-01T00:00:00Z"), Ok(()));
    assert_eq!((&obj["spec"]["nodeName"], &obj["metadata"]["annotations"]["a"]), (&json!("n"), &json!("b")));
    assert_eq!(obj["status"]["conditions"][0]["status"], "True");
    let again = prepare_binding(&mut obj, &binding, "2026-01-01T00:00:00Z");
    assert_eq!(again, Err("pod p is already assigned to node \"n\"".to_owned()));
}

#[test]
fn ephemeral_containers_are_only_added() {
    let old = made("", "pods", &pod());
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i", "imagePullPolicy": "Always",
        "terminationMessagePolicy": "File"}]);
    new["spec"]["nodeName"] = json!("kept from the old one");
    prepare_ephemeral_containers(&mut new, &old);
    let mut errs = ErrorList::default();
    validate_ephemeral_containers(&new, &old, &mut errs);
    assert!(errs.is_empty(), "{errs:?}");
    assert!(new["spec"]["nodeName"].is_null());
    validate_ephemeral_containers(&old, &new, &mut errs);
    assert_eq!(errs.len(), 1);
}

#[test]
fn a_resize_changes_cpu_and_memory_alone() {
    let old = made("", "pods", &pod());
    let mut new = with(&old, "/spec/containers/0/resources/requests/cpu", json!("200m"));
    new["spec"]["containers"][0]["image"] = json!("kept from the old one");
    prepare_resize(&mut new, &old);
    let mut errs = ErrorList::default();
    validate_resize(&new, &old, &mut errs);
    assert!(errs.is_empty(), "{errs:?}");
    assert_eq!(new["spec"]["containers"][0]["image"], "example.com/app:v1");
    let removed = with(&old, "/spec/containers/0/resources/limits/cpu", Value::Null);
    validate_resize(&removed, &old, &mut errs);
    assert_eq!(
        errs.iter().map(ToString::to_string).next(),
        Some("spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed".to_owned())
    );
}

#[test]
fn surprising_specs_are_warned_about() {
    let mut odd = pod();
    odd["metadata"]["name"] = json!("a.b");
    odd["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    odd["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("1500m");
    let found = PodStrategy.warnings(&made("", "pods", &odd), None);
    assert_eq!(
        found[1..],
        [
            "spec.containers[0].resources.requests[memory]: fractional byte value \"1500m\" is invalid, must be an \
             integer",
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ]
    );
    assert!(found[0].starts_with("metadata.name: this is used in the Pod's hostname"), "{found:?}");
}
