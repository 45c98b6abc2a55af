//! The strategy of Endpoints.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::strategy::Strategy;
use super::check::{self, PROTOCOLS, Report, dns_label, endpoint_ip, legacy_ip, qualified_name};
use super::ip;
use super::json_fields::{self, JsonFields, same};
use super::string_rules;

/// The strategy of Endpoints.
#[derive(Debug)]
pub struct EndpointsStrategy;

fn subsets(obj: &Value, errs: &mut ErrorList) {
    for (i, subset) in obj.items("subsets").iter().enumerate() {
        let at = Path::new("subsets").index(i);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|l| subset.items(l).is_empty()) {
            errs.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in lists {
            for (j, address) in subset.items(list).iter().enumerate() {
                self::address(address, &at.child(list).index(j), errs);
            }
        }
        let ports = subset.items("ports");
        for (j, port) in ports.iter().enumerate() {
            self::port(port, ports.len() > 1, &at.child("ports").index(j), errs);
        }
    }
}

fn address(address: &Value, path: &Path, errs: &mut ErrorList) {
    let ip = address.text("ip");
    legacy_ip(ip, &path.child("ip"), &[], errs);
    if !address.text("hostname").is_empty() {
        dns_label(address.text("hostname"), &path.child("hostname"), errs);
    }
    if let Some(node) = address.opt_text("nodeName") {
        errs.each(&path.child("nodeName"), node, string_rules::object_name(node));
    }
    endpoint_ip(ip, &path.child("ip"), errs);
}

fn port(port: &Value, needs_name: bool, path: &Path, errs: &mut ErrorList) {
    let name = port.text("name");
    if !name.is_empty() {
        dns_label(name, &path.child("name"), errs);
    } else if needs_name {
        errs.required(&path.child("name"), "");
    }
    check::port_number(port.int("port"), &path.child("port"), errs);
    check::one_of(port.text("protocol"), PROTOCOLS, &path.child("protocol"), errs);
    if let Some(protocol) = port.opt_text("appProtocol") {
        qualified_name(protocol, &path.child("appProtocol"), errs);
    }
}

impl Strategy for EndpointsStrategy {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        subsets(obj, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        // Values that were stored under older rules are accepted as long as they do not change.
        if !same(new.sub("subsets"), old.sub("subsets")) {
            subsets(new, errs);
        }
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let manager = json_fields::labels(obj).text("endpoints.kubernetes.io/managed-by");
        if manager == Some("endpoint-controller") {
            return Vec::new();
        }
        let mut out = Vec::new();
        for (i, subset) in obj.items("subsets").iter().enumerate() {
            for list in ["addresses", "notReadyAddresses"] {
                for (j, address) in subset.items(list).iter().enumerate() {
                    let at = Path::new("subsets").index(i).child(list).index(j).child("ip");
                    out.extend(ip::warnings(&at, address.text("ip")));
                }
            }
        }
        out
    }
}
