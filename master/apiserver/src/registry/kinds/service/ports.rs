//! Validation of the ports of a Service.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use serde_json::{Value, json};

use super::super::check::{self, PROTOCOLS, Report, dns_label, port_or_name, qualified_name};
use super::super::json_fields::JsonFields;
use super::type_of;

/// Validates each port of a Service by itself, and checks that port names differ.
pub fn validate(service: &Value, path: &Path, errs: &mut ErrorList) {
    let ports = service.sub("spec").items("ports");
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            dns_label(name, &at.child("name"), errs);
            if !names.insert(name) {
                errs.duplicate(&at.child("name"), name);
            }
        } else if ports.len() > 1 {
            errs.required(&at.child("name"), "");
        }
        check::port_number(port.int("port"), &at.child("port"), errs);
        check::one_of(port.text("protocol"), PROTOCOLS, &at.child("protocol"), errs);
        port_or_name(port.sub("targetPort"), &at.child("targetPort"), errs);
        if let Some(protocol) = port.opt_text("appProtocol") {
            qualified_name(protocol, &at.child("appProtocol"), errs);
        }
    }
}

/// Checks that node ports are set only for types that have them, and that numbers differ within a protocol.
pub fn validate_node_ports(service: &Value, path: &Path, errs: &mut ErrorList) {
    let ports = service.sub("spec").items("ports");
    if type_of(service) == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, p)| p.int("nodePort") != 0) {
            let at = path.index(i).child("nodePort");
            errs.forbidden(&at, "may not be used when `type` is 'ClusterIP'");
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let number = port.int("nodePort");
        if number != 0 && !seen.insert((port.text("protocol"), number)) {
            errs.duplicate(&path.index(i).child("nodePort"), number);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let (protocol, number) = (port.text("protocol"), port.int("port"));
        if !seen.insert((protocol, number)) {
            // Error messages print the fields of upstream's internal type, which has no JSON names.
            let shown = json!({
                "Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number,
                "TargetPort": 0, "NodePort": 0,
            });
            errs.duplicate(&path.index(i), shown);
        }
    }
}
