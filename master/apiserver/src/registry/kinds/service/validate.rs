//! Validation of Services in upstream's order; addresses are in `addresses.rs`, ports in `ports.rs`.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{
    self, Report, dns_subdomain, endpoint_ip, label_map, legacy_cidr, legacy_ip, qualified_name,
};
use super::super::ip;
use super::super::json_fields::{self, JsonFields};
use super::{addresses, is_external, is_headless, needs_health_port, ports, type_of};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

/// Validates a new Service.
pub fn create(service: &Value, errs: &mut ErrorList) {
    if setup(service, None, errs) {
        validate_object(service, None, errs);
    }
}

/// Validates an updated Service.
pub fn update(new: &Value, old: &Value, errs: &mut ErrorList) {
    if !setup(new, Some(old), errs) {
        return;
    }
    addresses::validate_change(new, old, errs);
    balancer_class(new, Some(old), errs);
    if needs_health_port(new) && needs_health_port(old) {
        let key = "healthCheckNodePort";
        if new.sub("spec").int(key) != old.sub("spec").int(key) {
            errs.forbidden(&Path::new("spec").child(key), "field is immutable");
        }
    }
    validate_object(new, Some(old), errs);
}

/// Runs the checks that upstream makes during allocation; returns false when one fails, and no further errors
/// are reported then.
fn setup(service: &Value, old: Option<&Value>, errs: &mut ErrorList) -> bool {
    let mut found = ErrorList::default();
    addresses::validate(service, old, &mut found);
    if found.is_empty() {
        addresses::family_setup(service, old, &mut found);
    }
    let good = found.is_empty();
    errs.append(found);
    good
}

fn validate_object(service: &Value, old: Option<&Value>, errs: &mut ErrorList) {
    let (spec, path) = (service.sub("spec"), Path::new("spec"));
    topology(service, errs);
    if spec.items("ports").is_empty() && !is_headless(service) && type_of(service) != "ExternalName" {
        errs.required(&path.child("ports"), "");
    }
    by_type(service, &path, errs);
    ports::validate(service, &path.child("ports"), errs);
    label_map(spec.entries("selector"), &path.child("selector"), errs);
    affinity(spec, &path, errs);
    external_ips(spec, old, &path.child("externalIPs"), errs);
    check::one_of(spec.text("type"), TYPES, &path.child("type"), errs);
    ports::validate_node_ports(service, &path.child("ports"), errs);
    source_ranges(service, old, &path.child("LoadBalancerSourceRanges"), errs);
    let allocate = "allocateLoadBalancerNodePorts";
    match (spec.has(allocate), type_of(service) == "LoadBalancer") {
        (true, false) => errs.forbidden(&path.child(allocate), BALANCER_ONLY),
        (false, true) => errs.required(&Path::new(allocate), ""),
        _ => {}
    }
    balancer_class(service, None, errs);
    traffic(service, &path, errs);
}

fn topology(service: &Value, errs: &mut ErrorList) {
    let notes = json_fields::annotations(service);
    if let (Some(mode), Some(hints)) = (notes.text(MODE), notes.text(HINTS))
        && mode != hints
    {
        let at = Path::new("metadata").child("annotations").key(MODE);
        let detail = format!("must match annotations[{HINTS}] when both are specified");
        errs.invalid(&at, mode, &detail);
    }
}

fn by_type(service: &Value, path: &Path, errs: &mut ErrorList) {
    let spec = service.sub("spec");
    match type_of(service) {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(service) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errs.invalid(&path.child("clusterIPs").index(0), super::NONE, &detail);
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies"] {
                if !spec.items(key).is_empty() {
                    errs.forbidden(&path.child(key), "may not be set for ExternalName services");
                }
            }
            if spec.has("ipFamilyPolicy") {
                let at = path.child("ipFamilyPolicy");
                errs.forbidden(&at, "may not be set for ExternalName services");
            }
            let name = spec.text("externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errs.required(&path.child("externalName"), "");
            } else {
                dns_subdomain(name, &path.child("externalName"), errs);
            }
        }
        _ => {}
    }
}

fn affinity(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const MAX_SECONDS: i64 = 86400;
    const NEEDED: &str = "when session affinity type is ClientIP";
    let kind = spec.text("sessionAffinity");
    check::one_of(kind, &["ClientIP", "None"], &path.child("sessionAffinity"), errs);
    let at = path.child("sessionAffinityConfig");
    let config = spec.at("sessionAffinityConfig");
    if kind == "None" && config.is_some() {
        errs.forbidden(&at, "must not be set when session affinity is None");
    }
    if kind != "ClientIP" {
        return;
    }
    let Some(config) = config else {
        errs.required(&at, NEEDED);
        return;
    };
    let at = at.child("clientIP");
    let Some(client) = config.at("clientIP") else {
        errs.required(&at, NEEDED);
        return;
    };
    let at = at.child("timeoutSeconds");
    match client.opt_int("timeoutSeconds") {
        None => errs.required(&at, NEEDED),
        Some(seconds) if seconds <= 0 || seconds > MAX_SECONDS => {
            let detail = format!("must be greater than 0 and less than {MAX_SECONDS}");
            errs.invalid(&at, seconds, &detail);
        }
        Some(_) => {}
    }
}

fn external_ips(spec: &Value, old: Option<&Value>, path: &Path, errs: &mut ErrorList) {
    let known = old.map(|o| o.sub("spec").texts("externalIPs")).unwrap_or_default();
    for (i, address) in spec.texts("externalIPs").iter().enumerate() {
        let before = errs.len();
        legacy_ip(address, &path.index(i), &known, errs);
        if errs.len() == before {
            endpoint_ip(address, &path.index(i), errs);
        }
    }
}

fn source_ranges(service: &Value, old: Option<&Value>, path: &Path, errs: &mut ErrorList) {
    let balancer = type_of(service) == "LoadBalancer";
    let ranges = service.sub("spec").texts("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !balancer {
            errs.forbidden(path, BALANCER_ONLY);
        }
        let known = old.map(|o| o.sub("spec").texts("loadBalancerSourceRanges")).unwrap_or_default();
        let known: Vec<&str> = known.into_iter().map(str::trim).collect();
        for (i, range) in ranges.iter().enumerate() {
            legacy_cidr(range.trim(), &path.index(i), &known, errs);
        }
        return;
    }
    let Some(text) = json_fields::annotations(service).text(RANGES) else { return };
    let at = Path::new("metadata").child("annotations").key(RANGES);
    if !balancer {
        errs.forbidden(&at, BALANCER_ONLY);
    }
    let unchanged = old.is_some_and(|o| json_fields::annotations(o).text(RANGES) == Some(text));
    if !unchanged && !text.trim().is_empty() {
        for range in text.trim().split(',') {
            legacy_cidr(range.trim(), &at, &[], errs);
        }
    }
}

fn balancer_class(service: &Value, old: Option<&Value>, errs: &mut ErrorList) {
    let balancer = type_of(service) == "LoadBalancer";
    let class = service.sub("spec").opt_text("loadBalancerClass");
    let at = Path::new("spec").child("loadBalancerClass");
    let old = old.filter(|o| balancer && type_of(o) == "LoadBalancer");
    if old.is_some_and(|o| o.sub("spec").opt_text("loadBalancerClass") != class) {
        errs.invalid(&at, class.map_or(Value::Null, Value::from), "may not change once set");
    }
    match class {
        Some(class) if balancer => qualified_name(class, &at, errs),
        Some(_) => errs.forbidden(&at, BALANCER_ONLY),
        None => {}
    }
}

fn traffic(service: &Value, path: &Path, errs: &mut ErrorList) {
    let spec = service.sub("spec");
    let policy = spec.text("externalTrafficPolicy");
    let at = path.child("externalTrafficPolicy");
    if is_external(service) {
        check::one_of(policy, &["Cluster", "Local"], &at, errs);
    } else if !policy.is_empty() {
        errs.invalid(&at, policy, "may only be set for externally-accessible services");
    }
    let port = spec.int("healthCheckNodePort");
    let at = path.child("healthCheckNodePort");
    if needs_health_port(service) {
        // A port of 0 is assigned later, during allocation, and not checked here.
        if port != 0 {
            check::port_number(port, &at, errs);
        }
    } else if port != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errs.invalid(&at, port, detail);
    }
    let at = path.child("internalTrafficPolicy");
    match spec.opt_text("internalTrafficPolicy") {
        None if matches!(type_of(service), "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errs.required(&at, "")
        }
        None => {}
        Some(_) => check::opt_one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"], path, errs),
    }
    let distributions = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    check::opt_one_of(spec, "trafficDistribution", distributions, path, errs);
}

/// Validates `status.loadBalancer`.
pub fn status(new: &Value, old: &Value, errs: &mut ErrorList) {
    let list = |service: &Value| service.sub("status").sub("loadBalancer").items("ingress").to_vec();
    let (now, before) = (list(new), list(old));
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if type_of(new) != "LoadBalancer" && !now.is_empty() {
        errs.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    let known: Vec<&str> = before.iter().map(|i| i.text("ip")).filter(|a| !a.is_empty()).collect();
    for (i, ingress) in now.iter().enumerate() {
        let at = path.index(i);
        let (address, host) = (ingress.text("ip"), ingress.text("hostname"));
        if !address.is_empty() {
            legacy_ip(address, &at.child("ip"), &known, errs);
        }
        match (ingress.opt_text("ipMode"), address.is_empty()) {
            (None, false) => errs.required(&at.child("ipMode"), "must be specified when `ip` is set"),
            (Some(_), true) => {
                errs.forbidden(&at.child("ipMode"), "may not be specified when `ip` is not set");
            }
            _ => check::opt_one_of(ingress, "ipMode", &["Proxy", "VIP"], &at, errs),
        }
        if !host.is_empty() {
            errs.each(&at.child("hostname"), host, names::dns1123_subdomain(host));
            if ip::parse(host).is_some() {
                errs.invalid(&at.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}
