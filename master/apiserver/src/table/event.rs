//! The printer of Events, in their core/v1 form.

use serde_json::Value;

use super::{Cell, Column, Doc, NAME, Printer, fixed, since};
use crate::registry::kinds::json_fields::{self, JsonFields};

const TYPE: &str = "core/v1.Event";

pub(super) static EVENT: Printer = Printer {
    columns: &[
        Column::text("Last Seen", Doc::Field(TYPE, "lastTimestamp")),
        Column::text("Type", Doc::Field(TYPE, "type")),
        Column::text("Reason", Doc::Field(TYPE, "reason")),
        Column::text("Object", Doc::Field(TYPE, "involvedObject")),
        Column::wide("Subobject", Doc::Field("core/v1.ObjectReference", "fieldPath")),
        Column::wide("Source", Doc::Field(TYPE, "source")),
        Column::text("Message", Doc::Field(TYPE, "message")),
        Column::wide("First Seen", Doc::Field(TYPE, "firstTimestamp")),
        Column::wide("Count", Doc::Field(TYPE, "count")),
        Column { priority: 1, ..NAME },
    ],
    cells,
};

/// Returns the first text that is not empty.
fn first<'a>(a: &'a str, b: &'a str) -> &'a str {
    if a.is_empty() { b } else { a }
}

fn cells(event: &Value) -> Vec<Cell> {
    let first_seen = since(first(event.text("firstTimestamp"), event.text("eventTime")));
    let mut last_seen = match event.text("lastTimestamp") {
        "" => first_seen.clone(),
        time => since(time),
    };
    let mut count = event.int("count").max(1);
    if let Some(series) = event.at("series") {
        last_seen = since(series.text("lastObservedTime"));
        count = series.int("count");
    }
    let about = event.sub("involvedObject");
    let kind = about.text("kind").to_lowercase();
    let object = match about.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = event.sub("source");
    let component = first(source.text("component"), event.text("reportingComponent"));
    let instance = first(source.text("host"), event.text("reportingInstance"));
    let source = if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
    vec![
        last_seen,
        fixed(event.text("type")),
        fixed(event.text("reason")),
        fixed(object),
        fixed(about.text("fieldPath")),
        fixed(source),
        fixed(event.text("message").trim()),
        first_seen,
        fixed(count),
        fixed(json_fields::name(event)),
    ]
}
