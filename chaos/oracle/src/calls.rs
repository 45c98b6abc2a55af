//! Converts a client's call to a Kubernetes API request, and an answer to what it proves about the call. Does
//! no I/O: simulated and live clients use the same code.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::history::{Call, Outcome, Refusal, Versioned};
use crate::kind::Kind;

/// Prefix of the names of the clients' objects; other objects in the namespace belong to the cluster.
pub const KEY_PREFIX: &str = "reg-";

/// Prefix of the API server's message when it gave up a write after repeated conflicts.
const STARVING: &str = "the object changed too often";
/// Part of the API server's message when a Service asks for a node port that is taken.
const TAKEN: &str = "is already allocated";
/// The API server's message when an update that names a version finds no object and would create it.
const VERSION_SET: &str = "resourceVersion should not be set on objects to be created";

fn object(key: &str, value: &str, revision: Option<u64>) -> Value {
    let mut object = Kind::of(key).object(Kind::name(key), value);
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object
}

/// Returns the request for a call on the collection of its kind: method, path and body.
pub fn request(collection: &str, call: &Call) -> (Method, String, Option<Value>) {
    let path = |key: &str| format!("{collection}/{}", Kind::name(key));
    match call {
        Call::Create { key, value } => (Method::POST, collection.to_owned(), Some(object(key, value, None))),
        Call::Update { key, expected, value } => {
            (Method::PUT, path(key), Some(object(key, value, Some(expected.revision))))
        }
        Call::Delete { key, expected } => {
            let options = expected.as_ref().map(|expected| {
                let revision = expected.revision.to_string();
                json!({
                    "kind": "DeleteOptions", "apiVersion": "v1",
                    "preconditions": {"resourceVersion": revision},
                })
            });
            (Method::DELETE, path(key), options)
        }
        Call::Patch { key, value } => (Method::PATCH, path(key), Some(call.kind().patch(value))),
        Call::Get { key } => (Method::GET, path(key), None),
        Call::List { .. } => (Method::GET, collection.to_owned(), None),
        Call::Pages { limit, .. } => (Method::GET, format!("{collection}?limit={limit}"), None),
        Call::ListAny { .. } => (Method::GET, format!("{collection}?resourceVersion=0"), None),
    }
}

/// Returns the Content-Type of a request body for a method.
pub fn content_type(method: &Method) -> &'static str {
    if *method == Method::PATCH { "application/merge-patch+json" } else { "application/json" }
}

/// Returns the path of the page that follows `page`; `None` if the list is complete or not paged.
pub fn next_page(collection: &str, call: &Call, page: &Value) -> Option<String> {
    let Call::Pages { limit, .. } = call else { return None };
    let token = page["metadata"]["continue"].as_str().filter(|token| !token.is_empty())?;
    // Characters of a continue token other than letters and digits are escaped (RFC 3986, section 2.1).
    let escape = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    let token: String = token.bytes().map(escape).collect();
    Some(format!("{collection}?limit={limit}&continue={token}"))
}

/// Appends a page to the earlier ones; returns false if it shows a different state (resourceVersion).
pub fn add_page(whole: &mut Value, mut page: Value) -> bool {
    let same = whole["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"];
    if let (Some(items), Value::Array(more)) = (whole["items"].as_array_mut(), page["items"].take()) {
        items.extend(more);
    }
    whole["metadata"]["continue"] = page["metadata"]["continue"].take();
    same
}

/// Returns the clients' objects of a list of a kind, by key.
pub fn objects(kind: Kind, list: &Value) -> BTreeMap<String, Versioned> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = items.iter().filter_map(|item| Some((item["metadata"]["name"].as_str()?, item)));
    let ours = named.filter(|(name, _)| name.starts_with(KEY_PREFIX));
    ours.filter_map(|(name, item)| Some((kind.key(name), kind.versioned(item)?))).collect()
}

/// Returns what an answer proves about its call; `None` if the answer is invalid.
pub fn outcome(call: &Call, status: StatusCode, body: &Value) -> Option<Outcome> {
    let (write, kind) = (call.is_write(), call.kind());
    let message = body["message"].as_str().unwrap_or_default();
    match status {
        status if status.is_success() => match call {
            Call::Create { .. } | Call::Update { .. } | Call::Patch { .. } => {
                Some(Outcome::Written { revision: kind.versioned(body)?.revision })
            }
            Call::Delete { .. } => Some(Outcome::Deleted { revision: None }),
            Call::Get { .. } => Some(Outcome::Read(Some(kind.versioned(body)?))),
            Call::List { .. } | Call::Pages { .. } | Call::ListAny { .. } => {
                let revision = body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                let objects = objects(kind, body);
                Some(match call {
                    Call::ListAny { .. } => Outcome::Shown { revision, objects },
                    _ => Outcome::Listed { revision, objects },
                })
            }
        },
        StatusCode::NOT_FOUND if write => Some(Outcome::Refused(Refusal::NotFound)),
        StatusCode::NOT_FOUND => Some(Outcome::Read(None)),
        StatusCode::CONFLICT if body["reason"] == "AlreadyExists" => {
            Some(Outcome::Refused(Refusal::AlreadyExists))
        }
        // The server gave up before it proposed the write again.
        StatusCode::CONFLICT if message.starts_with(STARVING) => Some(Outcome::NotEntered),
        StatusCode::CONFLICT if write => Some(Outcome::Refused(Refusal::Conflict)),
        // The state that the first page showed was compacted.
        StatusCode::GONE if matches!(call, Call::Pages { .. }) => Some(Outcome::NotEntered),
        // The server sends these only if the write certainly never entered a log.
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(Outcome::NotEntered),
        // Another Service holds the node port.
        StatusCode::UNPROCESSABLE_ENTITY if kind == Kind::Service && message.contains(TAKEN) => {
            Some(Outcome::NotEntered)
        }
        StatusCode::INTERNAL_SERVER_ERROR
            if kind.creates_on_update() && matches!(call, Call::Update { .. }) && message == VERSION_SET =>
        {
            Some(Outcome::Refused(Refusal::NotFound))
        }
        StatusCode::GATEWAY_TIMEOUT => Some(Outcome::Unknown),
        status if status.is_server_error() => Some(Outcome::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(call: &Call, (status, body): &(StatusCode, Value)) -> Option<Outcome> {
        super::outcome(call, *status, body)
    }

    fn answer(status: u16, body: Value) -> (StatusCode, Value) {
        (StatusCode::from_u16(status).unwrap(), body)
    }

    #[test]
    fn pages_are_one_list_where_they_show_one_state() {
        let page = |name: &str, revision: &str, token: &str| {
            json!({
                "metadata": {"resourceVersion": revision, "continue": token},
                "items": [object(name, "v", Some(3))],
            })
        };
        let call = Call::Pages { kind: Kind::ConfigMap, limit: 1 };
        let mut whole = page("reg-1", "7", "a+b");
        assert_eq!(next_page("/c", &call, &whole).unwrap(), "/c?limit=1&continue=a%2Bb");
        assert_eq!(next_page("/c", &Call::List { kind: Kind::ConfigMap }, &whole), None);
        assert!(add_page(&mut whole, page("reg-2", "7", "")));
        assert_eq!(next_page("/c", &call, &whole), None);
        let Some(Outcome::Listed { revision: 7, objects }) = super::outcome(&call, StatusCode::OK, &whole)
        else {
            panic!("{whole}");
        };
        assert_eq!(objects.len(), 2);
        assert!(!add_page(&mut whole, page("reg-3", "8", "")));
    }

    #[test]
    fn an_answer_is_read_for_what_it_proves() {
        let create = Call::Create { key: "reg-1".into(), value: "v".into() };
        let written = answer(201, object("reg-1", "v", Some(7)));
        assert_eq!(outcome(&create, &written), Some(Outcome::Written { revision: 7 }));
        let exists = answer(409, json!({"reason": "AlreadyExists"}));
        assert_eq!(outcome(&create, &exists), Some(Outcome::Refused(Refusal::AlreadyExists)));
        assert_eq!(outcome(&create, &answer(503, Value::Null)), Some(Outcome::NotEntered));
        assert_eq!(outcome(&create, &answer(504, Value::Null)), Some(Outcome::Unknown));
        assert_eq!(outcome(&create, &answer(422, Value::Null)), None);
        let service = Call::Create { key: "services/reg-1".into(), value: "v".into() };
        let taken = json!({"message": "spec.ports[0].nodePort: provided port is already allocated"});
        assert_eq!(outcome(&service, &answer(422, taken.clone())), Some(Outcome::NotEntered));
        assert_eq!(outcome(&create, &answer(422, taken)), None);
        let expected = Versioned { revision: 7, value: "v".into() };
        let update = Call::Update { key: "leases/reg-1".into(), expected, value: "w".into() };
        let set = json!({"message": "resourceVersion should not be set on objects to be created"});
        assert_eq!(outcome(&update, &answer(500, set)), Some(Outcome::Refused(Refusal::NotFound)));
        assert_eq!(outcome(&update, &answer(500, Value::Null)), Some(Outcome::Unknown));
        let get = Call::Get { key: "reg-1".into() };
        assert_eq!(outcome(&get, &answer(404, Value::Null)), Some(Outcome::Read(None)));
    }
}
