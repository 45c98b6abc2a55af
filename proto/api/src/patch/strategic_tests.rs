//! Tests of strategic merge patches.

use serde_json::{Value, json};

use super::*;
use crate::schema::Schema;

fn patched(kind: &str, original: Value, patch: Value) -> Result<Value, Error> {
    let group = if kind == "Deployment" { "apps" } else { "" };
    let schema = Schema::of(group, "v1", kind).expect("in the table");
    let object = |v: Value| v.as_object().cloned().unwrap_or_default();
    strategic_merge(schema.id(), object(original), object(patch)).map(Value::Object)
}

fn containers(list: Value) -> Value {
    json!({"spec": {"containers": list}})
}

#[test]
fn lists_merge_by_their_key_and_new_items_come_first_unless_ordered() {
    let pod = containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]));
    let got = patched("Pod", pod.clone(), containers(json!([{"name": "b", "image": "2"}]))).expect("merges");
    assert_eq!(got, containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}])));
    let got = patched(
        "Pod",
        pod,
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "3"}]}}),
    )
    .expect("merges");
    let names: Vec<&Value> =
        got["spec"]["containers"].as_array().expect("a list").iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

#[test]
fn directives_delete_and_replace() {
    let pod = containers(json!([{"name": "a"}, {"name": "b"}]));
    let got =
        patched("Pod", pod.clone(), containers(json!([{"name": "a", "$patch": "delete"}]))).expect("merges");
    assert_eq!(got, containers(json!([{"name": "b"}])));
    let got = patched("Pod", pod.clone(), containers(json!([{"name": "c"}, {"$patch": "replace"}])))
        .expect("merges");
    assert_eq!(got, containers(json!([{"name": "c"}])));
    let got = patched("Pod", pod, json!({"spec": {"$patch": "replace", "nodeName": "n"}})).expect("merges");
    assert_eq!(got, json!({"spec": {"nodeName": "n"}}));
}

#[test]
fn primitive_lists_merge_and_lose_what_is_listed() {
    let meta = |list: Value| json!({"metadata": {"finalizers": list}});
    let got = patched("Pod", meta(json!(["a/x", "b/x"])), meta(json!(["c/x", "a/x"]))).expect("merges");
    let mut all: Vec<String> =
        serde_json::from_value(got["metadata"]["finalizers"].clone()).expect("strings");
    all.sort();
    assert_eq!(all, ["a/x", "b/x", "c/x"]);
    let delete = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"]}});
    let got = patched("Pod", meta(json!(["a/x", "b/x"])), delete).expect("merges");
    assert_eq!(got, meta(json!(["b/x"])));
}

#[test]
fn retain_keys_drops_the_other_members() {
    let deployment =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let got = patched("Deployment", deployment.clone(), patch).expect("merges");
    assert_eq!(got, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let bad = patched("Deployment", deployment, json!({"spec": {"$retainKeys": 1}}));
    assert_eq!(bad, Err(Error::Format("invalid patch format of retainKeys")));
}

#[test]
fn null_removes_and_an_unkeyed_item_is_an_error() {
    let pod = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
    let got = patched("Pod", pod, json!({"metadata": {"labels": {"a": null}, "annotations": {"x": null}}}));
    assert_eq!(got, Ok(json!({"metadata": {"labels": {"b": "2"}, "annotations": {}}})));
    let pod = containers(json!([{"name": "a"}]));
    assert!(matches!(patched("Pod", pod, containers(json!([{"image": "x"}]))), Err(Error::Other(_))));
}
