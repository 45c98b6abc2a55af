//! The printer of Events, in their core/v1 form.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Doc, NAME, Printer, since};
use crate::registry::kinds::read::{self, Read};

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

/// The first text that is not empty.
fn first<'a>(a: &'a str, b: &'a str) -> &'a str {
    if a.is_empty() { b } else { a }
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_seen = since(first(event.text("firstTimestamp"), event.text("eventTime")), now);
    let mut last_seen = match event.text("lastTimestamp") {
        "" => first_seen.clone(),
        time => since(time, now),
    };
    let mut count = event.int("count").max(1);
    if let Some(series) = event.at("series") {
        last_seen = since(series.text("lastObservedTime"), now);
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
        json!(last_seen),
        json!(event.text("type")),
        json!(event.text("reason")),
        json!(object),
        json!(about.text("fieldPath")),
        json!(source),
        json!(event.text("message").trim()),
        json!(first_seen),
        json!(count),
        json!(read::name(event)),
    ]
}
