//! Table printers: what `kubectl get` shows of each kind. `respond/` asks for the columns once a table and for
//! the row of each object; a kind without a printer shows its name and when it was made. A row is made once a
//! revision of its object: only the ages in it are written anew for each answer.

mod config;
mod duration;
mod endpoints;
mod event;
mod node;
mod pod;
mod row;
mod service;
mod workload;

use jiff::Timestamp;
use proto_api::schema;
use serde_json::{Value, json};

use crate::registry::kinds::read::{self, Read};

pub use duration::human;
pub use row::{Row, RowSlot, Rows};

/// Where the description of a column comes from.
#[derive(Clone, Copy, Debug)]
enum Doc {
    /// A type of the schema table and one of its fields.
    Field(&'static str, &'static str),
    /// The text itself.
    Text(&'static str),
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
struct Column {
    name: &'static str,
    kind: &'static str,
    /// `name` marks the column that holds the object's name.
    format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
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

/// How one kind is shown: its columns, and the cells of an object in their order.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Cell>,
}

/// One cell of a row.
#[derive(Clone, Debug)]
enum Cell {
    /// The same as long as the object does not change.
    Fixed(Value),
    /// How long ago `time` was, between two texts.
    Ago { before: String, time: Timestamp, after: &'static str },
}

#[cfg(test)]
impl Cell {
    /// The value that is shown at a time.
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
    cells: |obj| vec![fixed(read::name(obj)), fixed(obj.sub("metadata").text("creationTimestamp"))],
};

/// The printer of a resource, by the group and name it is stored under.
fn printer(group: &str, resource: &str) -> &'static Printer {
    match (group, resource) {
        ("", "configmaps") => &config::CONFIG_MAP,
        ("", "endpoints") => &endpoints::ENDPOINTS,
        ("" | "events.k8s.io", "events") => &event::EVENT,
        ("", "namespaces") => &config::NAMESPACE,
        ("", "nodes") => &node::NODE,
        ("", "pods") => &pod::POD,
        ("", "podtemplates") => &workload::POD_TEMPLATE,
        ("", "secrets") => &config::SECRET,
        ("", "serviceaccounts") => &config::SERVICE_ACCOUNT,
        ("", "services") => &service::SERVICE,
        ("apps", "daemonsets") => &workload::DAEMON_SET,
        ("apps", "deployments") => &workload::DEPLOYMENT,
        ("apps", "replicasets") => &workload::REPLICA_SET,
        ("coordination.k8s.io", "leases") => &config::LEASE,
        ("discovery.k8s.io", "endpointslices") => &endpoints::ENDPOINT_SLICE,
        _ => &GENERIC,
    }
}

/// The `columnDefinitions` of a resource.
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

/// How long ago a time was, `<unknown>` when there is none.
fn since(time: &str) -> Cell {
    match time.parse::<Timestamp>() {
        Ok(time) => Cell::Ago { before: String::new(), time, after: "" },
        Err(_) => fixed("<unknown>"),
    }
}

/// The age of an object.
fn age(obj: &Value) -> Cell {
    since(obj.sub("metadata").text("creationTimestamp"))
}

/// `a=b,c=d`, or `<none>`.
fn labels(labels: read::Entries<'_>) -> String {
    let pairs: Vec<String> = labels.texts().map(|(k, v)| format!("{k}={v}")).collect();
    or_none(pairs.join(","))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// At most three items, then how many more there are.
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
