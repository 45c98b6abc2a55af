//! Conversion of kinds served in two groups: Event is stored as `v1` and served as `v1` and
//! `events.k8s.io/v1`. Handlers convert requests, encoders convert answers; all code between handles only the
//! stored form.

use proto_api::events;
use proto_api::kinds::Kind;
use serde_json::Value;

/// Returns whether objects of a kind are stored in a form other than the served one.
pub fn is_converted(kind: &Kind) -> bool {
    kind.storage.0 != kind.gvk.group || kind.storage.1 != kind.gvk.version
}

/// Converts an object a client sent to its stored form.
pub fn to_storage(kind: &Kind, mut obj: Value) -> Value {
    if is_converted(kind) {
        events::to_core(&mut obj);
    }
    obj
}

/// Converts a stored object to the form of the kind the client asked for.
pub fn from_storage(kind: &Kind, mut obj: Value) -> Value {
    if is_converted(kind) {
        events::from_core(&mut obj);
    }
    obj
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_api::kinds;
    use serde_json::json;

    #[test]
    fn an_event_survives_the_way_into_the_store_and_back() {
        let kind = kinds::by_resource("events.k8s.io", "v1", "events").expect("a row");
        let sent = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"}});
        let stored = to_storage(kind, sent.clone());
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!((&stored["message"], &stored["involvedObject"]["name"]), (&json!("n"), &json!("p")));
        assert_eq!(from_storage(kind, stored), sent);
    }
}
