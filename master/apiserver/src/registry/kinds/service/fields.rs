//! Fields of a Service that depend on other fields: defaults, address lists, IP families, allocated values
//! that an update keeps, and values that a change of type removes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::ip;
use super::super::json_fields::{JsonFields, ensure, items_mut, keep, same, set, unset};
use super::{NONE, is_external, is_headless, needs_health_port, type_of};

fn needs_node_ports(service: &Value) -> bool {
    let allocate = service.sub("spec").opt_flag("allocateLoadBalancerNodePorts");
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => allocate != Some(false),
        _ => false,
    }
}

/// Keeps the old object's addresses and ports where the new one leaves them out, so that clients may update
/// with the manifest they created the Service from.
pub fn keep_allocated(new: &mut Value, old: &Value) {
    let before = old.sub("spec");
    let (addresses, ports) = (
        type_of(new) != "ExternalName" && type_of(old) != "ExternalName",
        needs_node_ports(new) && needs_node_ports(old),
    );
    let health = needs_health_port(new) && needs_health_port(old);
    let Some(spec) = ensure(new, "spec") else { return };
    if addresses {
        if spec.text("clusterIP").is_empty() {
            keep(spec, before, "clusterIP");
        }
        if spec.items("clusterIPs").is_empty() {
            keep(spec, before, "clusterIPs");
        }
    }
    if ports {
        keep_node_ports(spec, before);
    }
    if health && spec.int("healthCheckNodePort") == 0 {
        keep(spec, before, "healthCheckNodePort");
    }
}

fn node_ports(spec: &Value) -> BTreeSet<i64> {
    spec.items("ports").iter().map(|p| p.int("nodePort")).filter(|p| *p != 0).collect()
}

fn keep_node_ports(spec: &mut Value, before: &Value) {
    let (now, then) = (node_ports(spec), node_ports(before));
    let used: BTreeSet<i64> = now.intersection(&then).copied().collect();
    let by_name: BTreeMap<&str, i64> =
        before.items("ports").iter().map(|p| (p.text("name"), p.int("nodePort"))).collect();
    for port in items_mut(spec, "ports") {
        let old = by_name.get(port.text("name")).copied().unwrap_or_default();
        if port.int("nodePort") == 0 && old != 0 && !used.contains(&old) {
            set(port, "nodePort", old);
        }
    }
}

/// Makes `clusterIP` and `clusterIPs` agree, whichever of them the client set.
pub fn normalize(new: &mut Value, old: Option<&Value>) {
    let Some(spec) = ensure(new, "spec") else { return };
    let one = spec.text("clusterIP").to_owned();
    let Some(before) = old.map(|o| o.sub("spec")) else {
        if !one.is_empty() && spec.items("clusterIPs").is_empty() {
            set(spec, "clusterIPs", json!([one]));
        }
        return;
    };
    let was = before.text("clusterIP");
    if spec.items("clusterIPs").is_empty() && !before.items("clusterIPs").is_empty() && was == one {
        keep(spec, before, "clusterIPs");
    }
    if was == one || !same(spec.sub("clusterIPs"), before.sub("clusterIPs")) {
        return;
    }
    if one.is_empty() {
        unset(spec, "clusterIPs");
    } else {
        set(spec, "clusterIPs", json!([one]));
    }
}

/// Sets `ipFamilyPolicy` and `ipFamilies` for a cluster whose Services are IPv4 only. Invalid values are left
/// for validation to report.
pub fn init_families(new: &mut Value, old: Option<&Value>) {
    if type_of(new) == "ExternalName" {
        return;
    }
    let Some(spec) = ensure(new, "spec") else { return };
    let manual = spec.text("clusterIP") == NONE && spec.entries("selector").is_empty();
    if !spec.has("ipFamilyPolicy") {
        match old.and_then(|o| o.sub("spec").opt_text("ipFamilyPolicy")) {
            Some(policy) => set(spec, "ipFamilyPolicy", policy),
            None if manual => set(spec, "ipFamilyPolicy", "RequireDualStack"),
            None => set(spec, "ipFamilyPolicy", "SingleStack"),
        }
    }
    let single = spec.text("ipFamilyPolicy") == "SingleStack";
    if let Some(before) = old.map(|o| o.sub("spec")).filter(|_| single) {
        for key in ["clusterIPs", "ipFamilies"] {
            if spec.items(key).len() > 1 && same(spec.sub(key), before.sub(key)) {
                let first = spec.items(key)[..1].to_vec();
                set(spec, key, first);
            }
        }
    }
    let mut families: Vec<String> = spec.texts("ipFamilies").into_iter().map(str::to_owned).collect();
    for (i, address) in spec.texts("clusterIPs").into_iter().enumerate() {
        if i >= families.len() && ip::is_v4(address) {
            families.push("IPv4".to_owned());
        }
    }
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    if manual && !single && families.len() == 1 {
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    set(spec, "ipFamilies", families);
}

/// Removes fields that only the old type had, unless the client gave them another value.
pub fn drop_type_dependent(new: &mut Value, old: &Value) {
    let before = old.sub("spec");
    let (was, is) = (type_of(old).to_owned(), type_of(new).to_owned());
    let with_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let health = needs_health_port(old) && !needs_health_port(new);
    let external = is_external(old) && !is_external(new);
    let Some(spec) = ensure(new, "spec") else { return };
    if was != "ExternalName" && is == "ExternalName" {
        let same_addresses = ["clusterIP", "clusterIPs"].iter().all(|k| same(spec.sub(k), before.sub(k)));
        if same_addresses {
            unset(spec, "clusterIP");
            unset(spec, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if same(spec.sub(key), before.sub(key)) {
                unset(spec, key);
            }
        }
    }
    if with_ports(&was) && !with_ports(&is) && node_ports(before).is_superset(&node_ports(spec)) {
        for port in items_mut(spec, "ports") {
            unset(port, "nodePort");
        }
    }
    let mut dropped = Vec::new();
    if health {
        dropped.push("healthCheckNodePort");
    }
    if was == "LoadBalancer" && is != "LoadBalancer" {
        dropped.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if external {
        dropped.push("externalTrafficPolicy");
    }
    for key in dropped {
        if same(spec.sub(key), before.sub(key)) {
            unset(spec, key);
        }
    }
}

/// Returns whether an update shortens the list `key` without emptying it; false for a headless Service.
pub fn is_reduced(new: &Value, old: &Value, key: &str) -> bool {
    let (now, before) = (new.sub("spec").items(key).len(), old.sub("spec").items(key).len());
    now != 0 && now < before && !is_headless(new)
}
