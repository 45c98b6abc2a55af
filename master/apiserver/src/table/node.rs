//! The printer of Nodes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{AGE, Cell, Column, Doc, NAME, Printer, age, fixed, or_none};
use crate::registry::kinds::json_fields::{self, JsonFields};

const INFO: &str = "core/v1.NodeSystemInfo";
const STATUS: &str = "core/v1.NodeStatus";

pub(super) static NODE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Status", Doc::Text("The status of the node")),
        Column::text("Roles", Doc::Text("The roles of the node")),
        AGE,
        Column::text("Version", Doc::Field(INFO, "kubeletVersion")),
        Column::wide("Internal-IP", Doc::Field(STATUS, "addresses")),
        Column::wide("External-IP", Doc::Field(STATUS, "addresses")),
        Column::wide("OS-Image", Doc::Field(INFO, "osImage")),
        Column::wide("Kernel-Version", Doc::Field(INFO, "kernelVersion")),
        Column::wide("Container-Runtime", Doc::Field(INFO, "containerRuntimeVersion")),
    ],
    cells,
};

fn cells(node: &Value) -> Vec<Cell> {
    let info = node.sub("status").sub("nodeInfo");
    let known = |key: &str| match info.text(key) {
        "" => fixed("<unknown>"),
        value => fixed(value),
    };
    vec![
        fixed(json_fields::name(node)),
        fixed(status(node)),
        fixed(or_none(roles(node))),
        age(node),
        fixed(info.text("kubeletVersion")),
        fixed(address(node, "InternalIP")),
        fixed(address(node, "ExternalIP")),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let conditions = node.sub("status").items("conditions");
    let ready = match conditions.iter().rfind(|c| c.text("type") == "Ready") {
        None => "Unknown",
        Some(condition) if condition.text("status") == "True" => "Ready",
        Some(_) => "NotReady",
    };
    let off = if node.sub("spec").flag("unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{ready}{off}")
}

fn roles(node: &Value) -> String {
    let mut out = BTreeSet::new();
    for (key, value) in json_fields::labels(node).texts() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            out.insert(role);
        } else if key == "kubernetes.io/role" {
            out.insert(value);
        }
    }
    out.remove("");
    out.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let list = node.sub("status").items("addresses");
    list.iter().find(|a| a.text("type") == kind).map_or("<none>", |a| a.text("address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cordoned_node_says_so() {
        let node = json!({
            "metadata": {"labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(status(&node), "Ready,SchedulingDisabled");
        assert_eq!(roles(&node), "edge,worker");
        assert_eq!(address(&node, "InternalIP"), "<none>");
    }
}
