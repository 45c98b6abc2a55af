//! Table printers: the columns that `kubectl get` shows for each kind. `respond/` gets the columns once per
//! table and the row of each object; a kind without a printer shows its name and creation time. A row is
//! built once per revision of its object; only its ages are formatted again for each answer.

mod duration;
mod endpoints;
mod event;
mod node;
mod pod;
mod row;
mod service;
mod small_kinds;
mod workload;

use jiff::Timestamp;
use proto_api::schema;
use serde_json::{Value, json};

use crate::registry::kinds::json_fields::{self, JsonFields};

pub use duration::human;
pub use row::{Row, RowSlot, Rows};

/// Source of a column's description.
#[derive(Clone, Copy, Debug)]
enum Doc {
    /// The documentation of a field: a type of the schema table and the field's name.
    Field(&'static str, &'static str),
    /// A description given as text.
    Text(&'static str),
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
struct Column {
    name: &'static str,
    kind: &'static str,
    /// `name` marks the column that holds the object's name; empty for any other.
    format: &'static str,
    /// 0 for a column that is always shown, 1 for one shown with `-o wide`.
    priority: u8,
    doc: Doc,
}

impl Column {
    const fn text(name: &'static str, doc: Doc) -> Self {
        Self { name, kind: "string", format: "", priority: 0, doc }
    }

    const fn number(name: &'static str, doc: Doc) -> Self {
        Self { name, kind: "integer", format: "", priority: 0, doc }
    }

    const fn wide(name: &'static str, doc: Doc) -> Self {
        Self { name, kind: "string", format: "", priority: 1, doc }
    }
}

const META: &str = "meta/v1.ObjectMeta";
const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", priority: 0, doc: Doc::Field(META, "name") };
const AGE: Column = Column::text("Age", Doc::Field(META, "creationTimestamp"));

/// Table layout of one kind: its columns, and the cells of an object in the same order.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Cell>,
}

/// One cell of a row.
#[derive(Clone, Debug)]
enum Cell {
    /// A value that changes only with the object.
    Fixed(Value),
    /// The time passed since `time`, between two texts.
    Ago { before: String, time: Timestamp, after: &'static str },
}

#[cfg(test)]
impl Cell {
    /// Returns the value shown at time `now`.
    fn at(&self, now: Timestamp) -> Value {
        match self {
            Cell::Fixed(value) => value.clone(),
            Cell::Ago { before, time, after } => {
                Value::from(format!("{before}{}{after}", human(now.duration_since(*time))))
            }
        }
    }
}

fn fixed(value: impl Into<Value>) -> Cell {
    Cell::Fixed(value.into())
}

static GENERIC: Printer = Printer {
    columns: &[
        NAME,
        Column {
            name: "Created At",
            kind: "date",
            format: "",
            priority: 0,
            doc: Doc::Field(META, "creationTimestamp"),
        },
    ],
    cells: |obj| vec![fixed(json_fields::name(obj)), fixed(obj.sub("metadata").text("creationTimestamp"))],
};

/// Returns the printer of a resource, by the group and name it is stored under.
fn printer(group: &str, resource: &str) -> &'static Printer {
    match (group, resource) {
        ("", "configmaps") => &small_kinds::CONFIG_MAP,
        ("", "endpoints") => &endpoints::ENDPOINTS,
        ("" | "events.k8s.io", "events") => &event::EVENT,
        ("", "namespaces") => &small_kinds::NAMESPACE,
        ("", "nodes") => &node::NODE,
        ("", "pods") => &pod::POD,
        ("", "podtemplates") => &workload::POD_TEMPLATE,
        ("", "secrets") => &small_kinds::SECRET,
        ("", "serviceaccounts") => &small_kinds::SERVICE_ACCOUNT,
        ("", "services") => &service::SERVICE,
        ("apps", "daemonsets") => &workload::DAEMON_SET,
        ("apps", "deployments") => &workload::DEPLOYMENT,
        ("apps", "replicasets") => &workload::REPLICA_SET,
        ("coordination.k8s.io", "leases") => &small_kinds::LEASE,
        ("discovery.k8s.io", "endpointslices") => &endpoints::ENDPOINT_SLICE,
        _ => &GENERIC,
    }
}

/// Returns the `columnDefinitions` of a resource.
pub fn columns(group: &str, resource: &str) -> Value {
    printer(group, resource).columns.iter().map(definition).collect()
}

fn definition(column: &Column) -> Value {
    let description = match column.doc {
        Doc::Text(text) => text,
        Doc::Field(of, field) => schema::description(of, field).unwrap_or_default(),
    };
    json!({
        "name": column.name, "type": column.kind, "format": column.format, "description": description,
        "priority": column.priority,
    })
}

/// Returns a cell with the time passed since `time`; `<unknown>` when it is no time.
fn since(time: &str) -> Cell {
    match time.parse::<Timestamp>() {
        Ok(time) => Cell::Ago { before: String::new(), time, after: "" },
        Err(_) => fixed("<unknown>"),
    }
}

/// Returns a cell with the age of an object.
fn age(obj: &Value) -> Cell {
    since(obj.sub("metadata").text("creationTimestamp"))
}

/// Formats labels as `a=b,c=d`; `<none>` where there are none.
fn labels(labels: json_fields::Entries<'_>) -> String {
    let pairs: Vec<String> = labels.texts().map(|(k, v)| format!("{k}={v}")).collect();
    or_none(pairs.join(","))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// Formats at most three items, then the number of further ones.
fn shortened(list: &[String]) -> String {
    const MAX: usize = 3;
    let shown = list[..list.len().min(MAX)].join(",");
    if list.len() > MAX { format!("{shown} + {} more...", list.len() - MAX) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for (group, resource) in [
            ("", "configmaps"),
            ("", "endpoints"),
            ("", "events"),
            ("", "namespaces"),
            ("", "nodes"),
            ("", "pods"),
            ("", "podtemplates"),
            ("", "secrets"),
            ("", "serviceaccounts"),
            ("", "services"),
            ("apps", "daemonsets"),
            ("apps", "deployments"),
            ("apps", "replicasets"),
            ("coordination.k8s.io", "leases"),
            ("discovery.k8s.io", "endpointslices"),
            ("example.com", "things"),
        ] {
            let cells = (printer(group, resource).cells)(&json!({"metadata": {"name": "x"}}));
            assert_eq!(
                Some(cells.len()),
                columns(group, resource).as_array().map(Vec::len),
                "{group} {resource}"
            );
        }
    }

    #[test]
    fn columns_are_described() {
        for column in columns("", "pods").as_array().into_iter().flatten() {
            assert!(!column.text("description").is_empty(), "{column}");
        }
    }
}
