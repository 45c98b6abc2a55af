//! Converts a client's call to a Kubernetes API request, and an answer to what it proves about the call. Does
//! no I/O: simulated and live clients use the same code.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::history::{Call, Outcome, Refusal, Versioned};

/// Prefix of the names of the clients' objects; other objects in the namespace belong to the cluster.
pub const KEY_PREFIX: &str = "reg-";

/// Prefix of the API server's message when it gave up a write after repeated conflicts.
const STARVING: &str = "the object changed too often";

fn object(key: &str, value: &str, revision: Option<u64>) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key}, "data": {"v": value},
    });
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object
}

/// Returns the request for a call on a collection of ConfigMaps: method, path and body.
pub fn request(collection: &str, call: &Call) -> (Method, String, Option<Value>) {
    let path = |key: &str| format!("{collection}/{key}");
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
        Call::Patch { key, value } => (Method::PATCH, path(key), Some(json!({"data": {"v": value}}))),
        Call::Get { key } => (Method::GET, path(key), None),
        Call::List => (Method::GET, collection.to_owned(), None),
        Call::Pages { limit } => (Method::GET, format!("{collection}?limit={limit}"), None),
        Call::ListAny => (Method::GET, format!("{collection}?resourceVersion=0"), None),
    }
}

/// Returns the Content-Type of a request body for a method.
pub fn content_type(method: &Method) -> &'static str {
    if *method == Method::PATCH { "application/merge-patch+json" } else { "application/json" }
}

/// Returns the path of the page that follows `page`; `None` if the list is complete or not paged.
pub fn next_page(collection: &str, call: &Call, page: &Value) -> Option<String> {
    let Call::Pages { limit } = call else { return None };
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

/// Returns the version and value of the object in an answer; `None` if it has none.
pub fn versioned(object: &Value) -> Option<Versioned> {
    let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some(Versioned { revision, value: object["data"]["v"].as_str()?.to_owned() })
}

/// Returns the clients' objects of a list, by key.
pub fn objects(list: &Value) -> BTreeMap<String, Versioned> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = items.iter().filter_map(|item| Some((item["metadata"]["name"].as_str()?, item)));
    let ours = named.filter(|(name, _)| name.starts_with(KEY_PREFIX));
    ours.filter_map(|(name, item)| Some((name.to_owned(), versioned(item)?))).collect()
}

/// Returns what an answer proves about its call; `None` if the answer is invalid.
pub fn outcome(call: &Call, status: StatusCode, body: &Value) -> Option<Outcome> {
    let write = call.is_write();
    let message = body["message"].as_str().unwrap_or_default();
    match status {
        status if status.is_success() => match call {
            Call::Create { .. } | Call::Update { .. } | Call::Patch { .. } => {
                Some(Outcome::Written { revision: versioned(body)?.revision })
            }
            Call::Delete { .. } => Some(Outcome::Deleted { revision: None }),
            Call::Get { .. } => Some(Outcome::Read(Some(versioned(body)?))),
            Call::List | Call::Pages { .. } | Call::ListAny => {
                let revision = body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                let objects = objects(body);
                Some(match call {
                    Call::ListAny => Outcome::Shown { revision, objects },
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
        let call = Call::Pages { limit: 1 };
        let mut whole = page("reg-1", "7", "a+b");
        assert_eq!(next_page("/c", &call, &whole).unwrap(), "/c?limit=1&continue=a%2Bb");
        assert_eq!(next_page("/c", &Call::List, &whole), None);
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
        let get = Call::Get { key: "reg-1".into() };
        assert_eq!(outcome(&get, &answer(404, Value::Null)), Some(Outcome::Read(None)));
    }
}
