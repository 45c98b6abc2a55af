//! The printer of Services.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{AGE, Cell, Column, Doc, NAME, Printer, age, fixed, labels, or_none};
use crate::registry::kinds::json_fields::{self, JsonFields};

const SPEC: &str = "core/v1.ServiceSpec";

pub(super) static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Type", Doc::Field(SPEC, "type")),
        Column::text("Cluster-IP", Doc::Field(SPEC, "clusterIP")),
        Column::text("External-IP", Doc::Field(SPEC, "externalIPs")),
        Column::text("Port(s)", Doc::Field(SPEC, "ports")),
        AGE,
        Column::wide("Selector", Doc::Field(SPEC, "selector")),
    ],
    cells,
};

fn cells(service: &Value) -> Vec<Cell> {
    let spec = service.sub("spec");
    let addresses = spec.texts("clusterIPs");
    vec![
        fixed(json_fields::name(service)),
        fixed(spec.text("type")),
        fixed(addresses.first().copied().unwrap_or("<none>")),
        fixed(external(service)),
        fixed(or_none(ports(spec))),
        age(service),
        fixed(labels(spec.entries("selector"))),
    ]
}

fn external(service: &Value) -> String {
    let spec = service.sub("spec");
    let own = spec.texts("externalIPs");
    match spec.text("type") {
        "ClusterIP" | "NodePort" => or_none(own.join(",")),
        "LoadBalancer" => {
            let ingress = service.sub("status").sub("loadBalancer").items("ingress");
            let given: BTreeSet<&str> = ingress
                .iter()
                .map(|i| if i.text("ip").is_empty() { i.text("hostname") } else { i.text("ip") })
                .filter(|address| !address.is_empty())
                .collect();
            let all: Vec<&str> = given.into_iter().chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => spec.text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(spec: &Value) -> String {
    let shown = |port: &Value| {
        let (number, protocol) = (port.int("port"), port.text("protocol"));
        match port.int("nodePort") {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    spec.items("ports").iter().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn node_ports_stand_beside_ports() {
        let spec = json!({"ports": [
            {"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]});
        assert_eq!(ports(&spec), "80:30080/TCP,53/UDP");
    }

    #[test]
    fn a_balancer_without_address_is_pending() {
        assert_eq!(external(&json!({"spec": {"type": "LoadBalancer"}})), "<pending>");
        assert_eq!(external(&json!({"spec": {"type": "ClusterIP"}})), "<none>");
    }
}
