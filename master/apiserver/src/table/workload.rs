//! Printers of Deployment, ReplicaSet, DaemonSet and PodTemplate.

use proto_api::selector::Selector;
use serde_json::Value;

use super::{AGE, Cell, Column, Doc, NAME, Printer, age, fixed, labels, or_none};
use crate::registry::kinds::json_fields::{self, JsonFields};

const CONTAINERS: Column = Column::wide("Containers", Doc::Text("Names of each container in the template."));
const IMAGES: Column =
    Column::wide("Images", Doc::Text("Images referenced by each container in the template."));
// Column description from stock's printers, which differs from the field's current documentation.
const DEPLOYMENT_SELECTOR: &str = "Label selector for pods. Existing ReplicaSets whose pods are selected by this \
                                   will be the ones affected by this deployment.";
const REPLICA_SET_SELECTOR: &str = "Selector is a label query over pods that should match the replica count. If \
                                    the selector is empty, it is defaulted to the labels present on the pod \
                                    template. Label keys and values that must match in order to be controlled by \
                                    this replica set. More info: https://kubernetes.io/docs/concepts/overview/\
                                    working-with-objects/labels/#label-selectors";
const DAEMON_SET_READY: &str = "The number of nodes that should be running the daemon pod and have one or more of \
                                the daemon pod running and ready.";
const DAEMON_SET_SELECTOR: &str = "A label query over pods that are managed by the daemon set. Must match in order \
                                   to be controlled. If empty, defaulted to labels on Pod template. More info: \
                                   https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/\
                                   #label-selectors";

pub(super) static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready", Doc::Text("Number of the pod with ready state")),
        Column::text("Up-to-date", Doc::Field("apps/v1.DeploymentStatus", "updatedReplicas")),
        Column::text("Available", Doc::Field("apps/v1.DeploymentStatus", "availableReplicas")),
        AGE,
        CONTAINERS,
        IMAGES,
        Column::wide("Selector", Doc::Text(DEPLOYMENT_SELECTOR)),
    ],
    cells: |obj| {
        let (spec, status) = (obj.sub("spec"), obj.sub("status"));
        let ready = format!("{}/{}", status.int("readyReplicas"), spec.int("replicas"));
        let (names, images) = containers(spec.sub("template"));
        vec![
            fixed(json_fields::name(obj)),
            fixed(ready),
            fixed(status.int("updatedReplicas")),
            fixed(status.int("availableReplicas")),
            age(obj),
            fixed(names),
            fixed(images),
            fixed(selector(spec).unwrap_or_else(|| "<invalid>".to_owned())),
        ]
    },
};

pub(super) static REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        Column::number("Desired", Doc::Field("apps/v1.ReplicaSetSpec", "replicas")),
        Column::number("Current", Doc::Field("apps/v1.ReplicaSetStatus", "replicas")),
        Column::number("Ready", Doc::Field("apps/v1.ReplicaSetStatus", "readyReplicas")),
        AGE,
        CONTAINERS,
        IMAGES,
        Column::wide("Selector", Doc::Text(REPLICA_SET_SELECTOR)),
    ],
    cells: |obj| {
        let (spec, status) = (obj.sub("spec"), obj.sub("status"));
        let counts = [spec.int("replicas"), status.int("replicas"), status.int("readyReplicas")];
        let mut out = vec![fixed(json_fields::name(obj))];
        out.extend(counts.map(fixed));
        out.push(age(obj));
        out.extend(wide(spec));
        out
    },
};

const DAEMON_STATUS: &str = "apps/v1.DaemonSetStatus";

pub(super) static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        Column::number("Desired", Doc::Field(DAEMON_STATUS, "desiredNumberScheduled")),
        Column::number("Current", Doc::Field(DAEMON_STATUS, "currentNumberScheduled")),
        Column::number("Ready", Doc::Text(DAEMON_SET_READY)),
        Column::number("Up-to-date", Doc::Field(DAEMON_STATUS, "updatedNumberScheduled")),
        Column::number("Available", Doc::Field(DAEMON_STATUS, "numberAvailable")),
        Column::text("Node Selector", Doc::Field("core/v1.PodSpec", "nodeSelector")),
        AGE,
        CONTAINERS,
        IMAGES,
        Column::wide("Selector", Doc::Text(DAEMON_SET_SELECTOR)),
    ],
    cells: daemon_set,
};

fn daemon_set(obj: &Value) -> Vec<Cell> {
    let (spec, status) = (obj.sub("spec"), obj.sub("status"));
    let mut out = vec![fixed(json_fields::name(obj))];
    for key in [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ] {
        out.push(fixed(status.int(key)));
    }
    out.push(fixed(labels(spec.sub("template").sub("spec").entries("nodeSelector"))));
    out.push(age(obj));
    out.extend(wide(spec));
    out
}

pub(super) static POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        Column { priority: 0, ..CONTAINERS },
        Column { priority: 0, ..IMAGES },
        Column::text("Pod Labels", Doc::Text("The labels for the pod template.")),
    ],
    cells: |obj| {
        let template = obj.sub("template");
        let (names, images) = containers(template);
        let labels = labels(template.sub("metadata").entries("labels"));
        vec![fixed(json_fields::name(obj)), fixed(names), fixed(images), fixed(labels)]
    },
};

/// Returns the names and the images of the containers of a template, comma-separated.
fn containers(template: &Value) -> (String, String) {
    let list = |key: &str| {
        let containers = template.sub("spec").items("containers");
        containers.iter().map(|c| c.text(key)).collect::<Vec<_>>().join(",")
    };
    (list("name"), list("image"))
}

/// Returns the selector as text; `None` when it is invalid.
fn selector(spec: &Value) -> Option<String> {
    Selector::from_label_selector(spec.at("selector")).ok().map(|s| s.to_string())
}

/// Returns the cells that `-o wide` adds: container names, images and selector.
fn wide(spec: &Value) -> [Cell; 3] {
    let (names, images) = containers(spec.sub("template"));
    let selector = selector(spec).map_or_else(|| "<error>".to_owned(), or_none);
    [fixed(names), fixed(images), fixed(selector)]
}
