//! Answers of a stock server, picked by hand, for the kinds that have no test file of their own.

use serde_json::{Value, json};

use super::testing::{created, made, reported, updated, with};
use crate::registry::strategy::Strategy;

fn spec() -> Value {
    json!({
        "selector": {"matchLabels": {"app": "a"}},
        "template": {
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "example.com/app:v1"}]},
        },
    })
}

fn deployment() -> Value {
    json!({"spec": spec()})
}

#[test]
fn a_selector_matches_its_template() {
    let bad = with(&deployment(), "/spec/template/metadata/labels/app", json!("b"));
    let text = "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template \
                `labels`";
    for (resource, expected) in [("deployments", 1), ("replicasets", 1), ("daemonsets", 1)] {
        let found = created("apps", resource, &bad);
        assert_eq!((found.len(), found[0].as_str()), (expected, text), "{resource}");
    }
}

#[test]
fn a_deployment_needs_a_selector() {
    let found = created("apps", "deployments", &with(&deployment(), "/spec/selector", Value::Null));
    assert_eq!(found[0], "spec.selector: Required value");
    let empty = created("apps", "deployments", &with(&deployment(), "/spec/selector", json!({})));
    assert_eq!(empty, ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]);
}

#[test]
fn a_selector_never_changes() {
    for resource in ["deployments", "replicasets", "daemonsets"] {
        let old = made("apps", resource, &deployment());
        let mut new = deployment();
        new["spec"]["selector"]["matchLabels"] = json!({"app": "b"});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "b"});
        let (_, found) = updated("apps", resource, &old, &new);
        assert_eq!(
            found,
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"],
            "{resource}"
        );
    }
}

#[test]
fn a_rolling_update_moves() {
    let strategy = |rolling: Value| json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    let of = |rolling: Value| {
        created("apps", "deployments", &with(&deployment(), "/spec/strategy", strategy(rolling)))
    };
    assert_eq!(
        of(json!({"maxSurge": 0, "maxUnavailable": "0%"})),
        [
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"
        ]
    );
    assert_eq!(
        of(json!({"maxUnavailable": "120%"})),
        [
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"120%\": must not be greater than 100%"
        ]
    );
    assert_eq!(of(json!({"maxSurge": "x"})).len(), 1);
    assert_eq!(of(json!({"maxSurge": -1, "maxUnavailable": 1})).len(), 1);
    assert!(of(json!({"maxSurge": "50%", "maxUnavailable": 0})).is_empty());
}

#[test]
fn a_deadline_is_longer_than_readiness_takes() {
    let mut bad = deployment();
    bad["spec"]["minReadySeconds"] = json!(600);
    let found = created("apps", "deployments", &bad);
    let text = "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds";
    assert_eq!(found, [text]);
}

#[test]
fn annotations_of_a_deployment_count_as_a_change() {
    let mut old = made("apps", "deployments", &deployment());
    old["metadata"]["generation"] = json!(1);
    let mut new = deployment();
    new["metadata"] = json!({"name": "x", "generation": 1, "annotations": {"a": "b"}});
    let (new, found) = updated("apps", "deployments", &old, &new);
    assert_eq!((found.len(), &new["metadata"]["generation"]), (0, &json!(2)));
}

#[test]
fn a_template_change_of_a_daemon_set_counts() {
    let old = made("apps", "daemonsets", &deployment());
    let key = "deprecated.daemonset.template.generation";
    assert_eq!(old["metadata"]["annotations"][key], "1");
    let mut new = deployment();
    new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    let (new, _) = updated("apps", "daemonsets", &old, &new);
    assert_eq!(new["metadata"]["annotations"][key], "2");
}

#[test]
fn status_counters_fit_together() {
    let old = made("apps", "replicasets", &deployment());
    let found = reported(
        "apps",
        "replicasets",
        &old,
        json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": -1}),
    );
    assert_eq!(
        found,
        [
            "status.availableReplicas: Invalid value: -1: must be greater than or equal to 0",
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
        ]
    );
}

#[test]
fn templates_are_checked_as_deep_as_pods() {
    let bad = json!({"template": {"metadata": {"labels": {"a": "b c"}}, "spec": {"containers": []}}});
    let found = created("", "podtemplates", &bad);
    assert!(
        found[0].starts_with("template.labels: Invalid value: \"b c\": a valid label must be"),
        "{found:?}"
    );
    assert_eq!(found[1], "template.spec.containers: Required value");
}

#[test]
fn a_namespace_carries_its_name_and_its_finalizer() {
    let obj = made("", "namespaces", &json!({"metadata": {"name": "n"}}));
    assert_eq!(obj["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    assert_eq!(obj["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(obj["status"]["phase"], "Active");
    let found = reported("", "namespaces", &obj, json!({"phase": "Terminating"}));
    let text =
        "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty";
    assert_eq!(found, [text]);
}

#[test]
fn the_cidr_of_a_node_stays() {
    let old = made("", "nodes", &json!({"spec": {"podCIDR": "10.9.9.0/24"}}));
    assert_eq!(old["spec"]["podCIDRs"], json!(["10.9.9.0/24"]));
    let (_, found) = updated("", "nodes", &old, &json!({"spec": {"podCIDR": "changed"}}));
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[1],
        "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
    );
}

#[test]
fn taints_have_effects_and_differ() {
    let taint = json!({"key": "a", "value": "b", "effect": "NoSchedule"});
    let found = created(
        "",
        "nodes",
        &json!({"spec": {"taints": [taint, taint, {"key": "b", "effect": "Sometimes"}]}}),
    );
    assert!(found[0].ends_with("taints must be unique by key and effect pair"), "{found:?}");
    assert_eq!(
        found[1],
        "metadata.taints[2].effect: Unsupported value: \"Sometimes\": supported values: \"NoSchedule\", \
         \"PreferNoSchedule\", \"NoExecute\""
    );
}

#[test]
fn endpoints_are_no_local_addresses() {
    let of = |ip: &str| {
        let subsets = json!([{"addresses": [{"ip": ip}], "ports": [{"name": "p", "port": 80}]}]);
        created("", "endpoints", &json!({"subsets": subsets}))
    };
    assert!(of("10.1.2.3").is_empty());
    assert_eq!(
        of("127.0.0.1"),
        [
            "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
          ::1/128)"
        ]
    );
    assert_eq!(of("changed").len(), 2);
}

#[test]
fn a_slice_keeps_its_family() {
    let slice = |family: &str, address: &str| json!({"addressType": family, "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}]});
    let old = made("discovery.k8s.io", "endpointslices", &slice("IPv4", "10.1.2.3"));
    let (_, found) = updated("discovery.k8s.io", "endpointslices", &old, &slice("IPv6", "fd00::1"));
    assert_eq!(found, ["addressType: Invalid value: \"IPv6\": field is immutable"]);
    let mixed = created("discovery.k8s.io", "endpointslices", &slice("IPv6", "10.1.2.3"));
    assert_eq!(mixed, ["endpoints[0].addresses: Invalid value: \"10.1.2.3\": must be an IPv6 address"]);
    let missing = created("discovery.k8s.io", "endpointslices", &json!({"endpoints": [{"addresses": []}]}));
    assert_eq!(
        missing,
        [
            "addressType: Required value",
            "endpoints[0].addresses: Required value: must contain at least 1 address"
        ]
    );
}

#[test]
fn events_are_about_objects_of_their_namespace() {
    let event = json!({"metadata": {"name": "e", "namespace": "n"}, "involvedObject": {"namespace": "m"}});
    let found = created("", "events", &event);
    assert_eq!(found, ["involvedObject.namespace: Invalid value: \"m\": does not match event.namespace"]);
}

#[test]
fn the_newer_events_say_who_reports_what() {
    let mut errs = proto_api::field::ErrorList::default();
    let event = json!({"metadata": {"namespace": "default"}, "type": "Odd", "count": 1});
    super::event::EventStrategy { new_group: true }.validate(&event, &mut errs);
    let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "eventTime: Required value",
            "type: Invalid value: \"\": has invalid value: Odd",
            "count: Invalid value: \"\": needs to be unset",
        ]
    );
}

#[test]
fn what_an_event_of_the_newer_group_is_about_stays() {
    let mut errs = proto_api::field::ErrorList::default();
    let old = json!({
        "metadata": {"namespace": "parity"},
        "involvedObject": {"kind": "Pod", "namespace": "parity", "name": "x"},
        "type": "Normal",
    });
    let new = json!({
        "metadata": {"namespace": "parity"},
        "involvedObject": {"namespace": "parity", "name": "x"},
    });
    super::event::EventStrategy { new_group: true }.validate_update(&new, &old, &mut errs);
    let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "involvedObject: Invalid value: {\"Kind\":\"\",\"Namespace\":\"parity\",\"Name\":\"x\",\"UID\":\"\",\
             \"APIVersion\":\"\",\"ResourceVersion\":\"\",\"FieldPath\":\"\"}: field is immutable",
            "type: Invalid value: \"\": field is immutable",
        ]
    );
}

#[test]
fn a_lease_lasts() {
    let found = created("coordination.k8s.io", "leases", &json!({"spec": {"leaseDurationSeconds": -1}}));
    assert_eq!(found, ["spec.leaseDurationSeconds: Invalid value: -1: must be greater than 0"]);
}

#[test]
fn a_review_asks_for_one_thing() {
    let mut errs = proto_api::field::ErrorList::default();
    super::review::AccessReview::Own.validate(&json!({"spec": {}}), &mut errs);
    let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes \
          must be specified"
        ]
    );
}
