//! The strategy of EndpointSlices.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::strategy::Strategy;
use super::check::{self, IMMUTABLE, PROTOCOLS, Report, dns_label, endpoint_ip, legacy_ip, qualified_name};
use super::ip;
use super::json_fields::{self, JsonFields, items_mut, same, set, unset};
use super::string_rules;

/// The strategy of EndpointSlices.
#[derive(Debug)]
pub struct EndpointSliceStrategy;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

fn ports(obj: &Value, errs: &mut ErrorList) {
    let path = Path::new("ports");
    let list = obj.items("ports");
    if list.len() > MAX_PORTS {
        errs.too_many(&path, list.len(), MAX_PORTS);
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let at = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            dns_label(name, &at.child("name"), errs);
        }
        if !seen.insert(name) {
            errs.duplicate(&at.child("name"), name);
        }
        match port.opt_text("protocol") {
            None => errs.required(&at.child("protocol"), ""),
            Some(_) => check::opt_one_of(port, "protocol", PROTOCOLS, &at, errs),
        }
        if let Some(protocol) = port.opt_text("appProtocol") {
            qualified_name(protocol, &at.child("appProtocol"), errs);
        }
    }
}

fn endpoints(obj: &Value, errs: &mut ErrorList) {
    let path = Path::new("endpoints");
    let list = obj.items("endpoints");
    if list.len() > MAX_ENDPOINTS {
        errs.too_many(&path, list.len(), MAX_ENDPOINTS);
        return;
    }
    for (i, endpoint) in list.iter().enumerate() {
        let at = path.index(i);
        addresses(endpoint, obj.text("addressType"), &at.child("addresses"), errs);
        if let Some(node) = endpoint.opt_text("nodeName") {
            errs.each(&at.child("nodeName"), node, string_rules::object_name(node));
        }
        if let Some(name) = endpoint.opt_text("hostname") {
            dns_label(name, &at.child("hostname"), errs);
        }
        if let Some(hints) = endpoint.at("hints") {
            self::hints(hints, &at.child("hints"), errs);
        }
    }
}

fn addresses(endpoint: &Value, family: &str, path: &Path, errs: &mut ErrorList) {
    let list = endpoint.texts("addresses");
    if list.is_empty() {
        errs.required(path, "must contain at least 1 address");
    } else if list.len() > MAX_ADDRESSES {
        errs.too_many(path, list.len(), MAX_ADDRESSES);
    }
    for (i, address) in list.into_iter().enumerate() {
        let at = path.index(i);
        let mut found = ErrorList::default();
        match family {
            "IPv4" => legacy_ip(address, &at, &[], &mut found),
            "IPv6" => strict_ip(address, &at, &mut found),
            "FQDN" => domain(address, &at, &mut found),
            _ => continue,
        }
        let good = found.is_empty() && family != "FQDN";
        errs.append(found);
        if !good {
            continue;
        }
        if family == "IPv4" && !ip::is_v4(address) {
            errs.invalid(path, address, "must be an IPv4 address");
        }
        if family == "IPv6" && !ip::is_v6(address) {
            errs.invalid(path, address, "must be an IPv6 address");
        }
        endpoint_ip(address, &at, errs);
    }
}

/// Checks that an address is in canonical form.
fn strict_ip(value: &str, path: &Path, errs: &mut ErrorList) {
    let Some(parsed) = ip::parse(value) else {
        legacy_ip(value, path, &[], errs);
        return;
    };
    match value.parse::<std::net::IpAddr>() {
        Err(_) => errs.invalid(path, value, "must not have leading 0s"),
        Ok(std::net::IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            errs.invalid(path, value, "must not be an IPv4-mapped IPv6 address");
        }
        Ok(_) if parsed.to_string() != value => {
            let detail = format!("must be in canonical form ({:?})", parsed.to_string());
            errs.invalid(path, value, &detail);
        }
        Ok(_) => {}
    }
}

fn domain(value: &str, path: &Path, errs: &mut ErrorList) {
    if value.is_empty() {
        errs.required(path, "");
        return;
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        errs.invalid(path, name, &messages.join(","));
        return;
    }
    if !name.contains('.') {
        errs.invalid(path, name, "should be a domain with at least two segments separated by dots");
        return;
    }
    for label in name.split('.') {
        let messages = names::dns1123_label(label);
        if !messages.is_empty() {
            errs.invalid(path, label, &messages.join(","));
            return;
        }
    }
}

fn hints(hints: &Value, path: &Path, errs: &mut ErrorList) {
    for (key, rule) in
        [("forZones", names::label_value as fn(&str) -> Vec<String>), ("forNodes", string_rules::object_name)]
    {
        let at = path.child(key);
        let list = hints.items(key);
        if list.len() > MAX_HINTS {
            errs.too_many(&at, list.len(), MAX_HINTS);
            return;
        }
        let mut seen = BTreeSet::new();
        for (i, hint) in list.iter().enumerate() {
            let (name, at) = (hint.text("name"), at.index(i).child("name"));
            if !seen.insert(name) {
                errs.duplicate(&at, name);
            }
            errs.each(&at, name, rule(name));
        }
    }
}

fn validate_object(obj: &Value, old: Option<&Value>, errs: &mut ErrorList) {
    let families = &["FQDN", "IPv4", "IPv6"];
    check::one_of(obj.text("addressType"), families, &Path::new("addressType"), errs);
    ports(obj, errs);
    // Values that were stored under older rules are accepted as long as they do not change.
    if !old.is_some_and(|o| same(o.sub("endpoints"), obj.sub("endpoints"))) {
        endpoints(obj, errs);
    }
}

impl Strategy for EndpointSliceStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        for endpoint in items_mut(obj, "endpoints") {
            unset(endpoint, "deprecatedTopology");
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if !same(new.sub("endpoints"), old.sub("endpoints")) {
            for endpoint in items_mut(new, "endpoints") {
                unset(endpoint, "deprecatedTopology");
            }
        }
        if !same(new.sub("metadata").sub("labels"), old.sub("metadata").sub("labels")) {
            let next = old.sub("metadata").int("generation") + 1;
            if let Some(meta) = new.get_mut("metadata") {
                set(meta, "generation", next);
            }
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate_object(obj, None, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate_object(new, Some(old), errs);
        if new.text("addressType") != old.text("addressType") {
            errs.invalid(&Path::new("addressType"), new.text("addressType"), IMMUTABLE);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() && obj.text("addressType") == "FQDN" {
            out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        let manager = json_fields::labels(obj).text("endpointslice.kubernetes.io/managed-by");
        let controllers = ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];
        if manager.is_some_and(|m| controllers.contains(&m)) {
            return out;
        }
        for (i, endpoint) in obj.items("endpoints").iter().enumerate() {
            for (j, address) in endpoint.texts("addresses").iter().enumerate() {
                let at = Path::new("endpoints").index(i).child("addresses").index(j);
                out.extend(ip::warnings(&at, address));
            }
        }
        out
    }
}
