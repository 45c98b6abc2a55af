//! Events of two API groups in one store: objects are stored as `v1`; `events.k8s.io/v1` is the same object
//! with other field names. The API server converts between them in requests and answers.

use serde_json::{Map, Value};

/// Field names in `v1` and in `events.k8s.io/v1`; all other names are the same in both.
const NAMES: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("apiVersion", "apiVersion"),
];

/// Converts an `events.k8s.io/v1` Event (or a list of them) to `v1`.
pub fn to_core(event: &mut Value) {
    convert(event, "v1", |(core, new)| (new, core));
}

/// Converts a `v1` Event (or a list of them) to `events.k8s.io/v1`.
pub fn from_core(event: &mut Value) {
    convert(event, "events.k8s.io/v1", |names| names);
}

/// Converts a field label of a field selector from `events.k8s.io/v1` to `v1`.
pub fn core_field_label(label: &str) -> String {
    let (first, rest) = label.split_once('.').map_or((label, None), |(f, r)| (f, Some(r)));
    let first = NAMES.iter().find(|(_, new)| *new == first).map_or(first, |(core, _)| core);
    rest.map_or_else(|| first.to_owned(), |rest| format!("{first}.{rest}"))
}

fn convert(
    event: &mut Value,
    api_version: &str,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(members) = event.as_object_mut() else { return };
    if let Some(items) = members.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(|item| convert(item, api_version, direction));
    } else {
        rename(members, direction);
    }
    if members.contains_key("apiVersion") {
        members.insert("apiVersion".into(), Value::String(api_version.to_owned()));
    }
}

fn rename(
    members: &mut Map<String, Value>,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for (from, to) in NAMES.into_iter().map(direction).filter(|(from, to)| from != to) {
        if let Some(value) = members.remove(from) {
            members.insert(to.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_goes_there_and_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}, "message": "m",
            "involvedObject": {"name": "p"}, "source": {"component": "c"}, "count": 2, "firstTimestamp": null,
            "reportingComponent": "r", "reason": "R"});
        let mut event = core.clone();
        from_core(&mut event);
        assert_eq!(event["regarding"], json!({"name": "p"}));
        assert_eq!((&event["apiVersion"], &event["note"]), (&json!("events.k8s.io/v1"), &json!("m")));
        assert!(event.get("message").is_none());
        to_core(&mut event);
        assert_eq!(event, core);
    }

    #[test]
    fn field_labels_are_renamed_too() {
        assert_eq!(core_field_label("regarding.name"), "involvedObject.name");
        assert_eq!(core_field_label("reportingController"), "reportingComponent");
        assert_eq!(core_field_label("metadata.name"), "metadata.name");
    }
}
