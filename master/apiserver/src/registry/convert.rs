//! Kinds served in two groups: Event is stored as `v1` and served as `v1` and `events.k8s.io/v1`. Handlers
//! convert what comes in, answers convert what goes out; everything between sees the storage form alone.

use proto_api::events;
use proto_api::kinds::Kind;
use serde_json::Value;

/// Whether objects of a kind are stored in another form than they are served in.
pub fn is_converted(kind: &Kind) -> bool {
    kind.storage.0 != kind.gvk.group || kind.storage.1 != kind.gvk.version
}

/// The storage form of an object a client sent.
pub fn to_storage(kind: &Kind, mut obj: Value) -> Value {
    if is_converted(kind) {
        events::to_core(&mut obj);
    }
    obj
}

/// The form of a stored object that a client asked for.
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
