//! Defaults that need code, and the visible effects of converting an object to the internal version and
//! back.

use base64::Engine;
use serde_json::{Map, Value, json};

use super::image;

type Object = Map<String, Value>;

/// Applies the rule of a type, before its default rows and its fields' defaults.
pub(super) fn apply(name: &str, object: &mut Object) {
    match name {
        "core/v1.Pod" => pod(object),
        "core/v1.PodSpec" => pod_spec(object),
        "core/v1.Container" | "core/v1.EphemeralContainer" => pull_policy(object, "imagePullPolicy", "image"),
        "core/v1.ImageVolumeSource" => pull_policy(object, "pullPolicy", "reference"),
        "core/v1.Volume" => volume(object),
        "core/v1.Service" => service(object),
        "core/v1.Namespace" => namespace(object),
        "core/v1.Secret" => secret(object),
        "core/v1.NodeSpec" => node_spec(object),
        "core/v1.NodeStatus" => node_status(object),
        "core/v1.PodStatus" => pod_status(object),
        "core/v1.ReplicationController" => replication_controller(object),
        "core/v1.GRPCAction" => set(object, "service", || json!("")),
        "apps/v1.DeploymentStrategy" => rolling_update(object, json!("25%"), json!("25%")),
        "apps/v1.DaemonSetUpdateStrategy" => rolling_update(object, json!(1), json!(0)),
        "apps/v1.StatefulSetUpdateStrategy" => stateful_set_strategy(object),
        _ => {}
    }
}

fn set(object: &mut Object, field: &str, value: impl FnOnce() -> Value) {
    object.entry(field).or_insert_with(value);
}

fn text<'a>(object: &'a Object, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn child<'a>(object: &'a mut Object, field: &str) -> Option<&'a mut Object> {
    object.entry(field).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

fn items<'a>(object: &'a mut Object, field: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Sets defaults of pods (not of pod templates): requests from limits, service links on, and host ports
/// equal to container ports on the host network.
fn pod(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in items(container, "ports") {
                    let number = port.get("containerPort").cloned();
                    if let Some(number) = number {
                        set(port, "hostPort", || number);
                    }
                }
            }
        }
    }
    set(spec, "enableServiceLinks", || json!(true));
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let Some(requests) = child(resources, "requests") else { return };
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// Gives both fields of the service account's name the same value.
fn pod_spec(object: &mut Object) {
    let name = match text(object, "serviceAccountName") {
        "" => text(object, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        object.insert("serviceAccountName".into(), json!(name));
        object.insert("serviceAccount".into(), json!(name));
    }
}

fn pull_policy(object: &mut Object, policy: &str, reference: &str) {
    let latest = image::is_latest(text(object, reference));
    set(object, policy, || json!(if latest { "Always" } else { "IfNotPresent" }));
}

/// Makes a volume without a source an emptyDir.
fn volume(object: &mut Object) {
    if object.keys().all(|k| k == "name") {
        object.insert("emptyDir".into(), json!({}));
    }
}

fn service(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "sessionAffinity", || json!("None"));
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let set_already =
                spec.get("sessionAffinityConfig").and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if set_already.is_none() {
                spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
            }
        }
        _ => {}
    }
    set(spec, "type", || json!("ClusterIP"));
    let kind = text(spec, "type").to_owned();
    for port in items(spec, "ports") {
        set(port, "protocol", || json!("TCP"));
        let number = port.get("port").cloned().unwrap_or(json!(0));
        if matches!(port.get("targetPort"), None | Some(Value::Null)) || is_zero_port(port.get("targetPort"))
        {
            port.insert("targetPort".into(), number);
        }
    }
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    let reachable =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips);
    if reachable {
        set(spec, "externalTrafficPolicy", || json!("Cluster"));
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set(spec, "internalTrafficPolicy", || json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", || json!(true));
        let ingress = object.get_mut("status").and_then(|s| s.pointer_mut("/loadBalancer/ingress"));
        let ingress =
            ingress.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut);
        for entry in ingress.filter(|e| e.contains_key("ip")) {
            set(entry, "ipMode", || json!("VIP"));
        }
    }
}

fn is_zero_port(port: Option<&Value>) -> bool {
    port.is_some_and(|p| p.as_i64() == Some(0) || p.as_str() == Some(""))
}

fn namespace(object: &mut Object) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let name = text(metadata, "name").to_owned();
    if !name.is_empty()
        && let Some(labels) = child(metadata, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    }
}

/// Moves `stringData` into `data`.
fn secret(object: &mut Object) {
    let Some(Value::Object(strings)) = object.remove("stringData") else { return };
    if strings.is_empty() {
        return;
    }
    if let Some(data) = child(object, "data") {
        for (key, value) in strings {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            data.insert(key, Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    }
}

/// Makes a single field and the first item of its plural field equal; `key` is the item's member with the
/// value, if any.
fn plural(object: &mut Object, one: &str, many: &str, key: Option<&str>) {
    let single = text(object, one).to_owned();
    let first = object.get(many).and_then(|l| l.get(0)).cloned();
    match first {
        None if !single.is_empty() => {
            let entry = key.map_or_else(|| json!(single), |key| json!({ key: single }));
            object.insert(many.into(), json!([entry]));
        }
        Some(first) if single.is_empty() => {
            let value = key.map_or(Some(&first), |key| first.get(key)).cloned();
            if let Some(value) = value {
                object.insert(one.into(), value);
            }
        }
        _ => {}
    }
}

fn node_spec(object: &mut Object) {
    plural(object, "podCIDR", "podCIDRs", None);
}

fn pod_status(object: &mut Object) {
    plural(object, "podIP", "podIPs", Some("ip"));
}

fn node_status(object: &mut Object) {
    if let Some(capacity) = object.get("capacity").cloned() {
        set(object, "allocatable", || capacity);
    }
}

fn replication_controller(object: &mut Object) {
    let labels = object.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(spec) = child(object, "spec") {
        set(spec, "replicas", || json!(1));
        if let Some(labels) = &labels {
            set(spec, "selector", || labels.clone());
        }
    }
    if let (Some(labels), Some(metadata)) = (labels, child(object, "metadata")) {
        set(metadata, "labels", || labels);
    }
}

fn rolling_update(object: &mut Object, unavailable: Value, surge: Value) {
    set(object, "type", || json!("RollingUpdate"));
    if text(object, "type") != "RollingUpdate" {
        return;
    }
    if let Some(update) = child(object, "rollingUpdate") {
        set(update, "maxUnavailable", || unavailable);
        set(update, "maxSurge", || surge);
    }
}

fn stateful_set_strategy(object: &mut Object) {
    if text(object, "type").is_empty() {
        object.insert("type".into(), json!("RollingUpdate"));
        set(object, "rollingUpdate", || json!({}));
    }
    let rolling = text(object, "type") == "RollingUpdate";
    if let Some(update) = object.get_mut("rollingUpdate").and_then(Value::as_object_mut).filter(|_| rolling) {
        set(update, "partition", || json!(0));
        set(update, "maxUnavailable", || json!(1));
    }
}
