//! Nodes and pods for the tests of this crate.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::snapshot::PodInfo;

/// Merges `extra` into `base`; fields of `extra` win.
fn merge(base: &mut Value, extra: Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, extra) => *base = extra,
    }
}

/// A node that allows 110 pods.
pub(crate) fn node(name: &str, allocatable: Value, extra: Value) -> Arc<Node> {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"pods": "110"}}
    });
    merge(&mut value["status"]["allocatable"], allocatable);
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

/// A pod of namespace `default` with one container.
pub(crate) fn pod(name: &str, requests: Value, extra: Value) -> Arc<PodInfo> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"schedulerName": "default-scheduler",
            "containers": [{"name": "c", "resources": {"requests": requests}}]}
    });
    merge(&mut value, extra);
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(value).unwrap())))
}
