//! What a client asks for, as a request of the Kubernetes API, and what an answer
//! proves about it. Pure. `workload` and `watcher` use it.

use std::collections::BTreeMap;

use chaos_oracle::history::{Call, Outcome, Refusal, Versioned};
use chaos_spec::experiment as spec;
use http::{Method, StatusCode};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::http::Answer;
use crate::observer::KEY_PREFIX;

/// How the API server says that it gave a write up because others always came first.
const STARVING: &str = "the object changed too often";

/// What one client knows and draws its calls from.
pub struct Memory {
    /// All that is left to chance.
    pub random: StdRng,
    client: usize,
    /// What it last saw of each object.
    seen: BTreeMap<String, Versioned>,
    writes: u64,
}

impl Memory {
    /// A client that has seen nothing.
    pub fn new(client: usize, random: StdRng) -> Self {
        Self { random, client, seen: BTreeMap::new(), writes: 0 }
    }

    /// The next call, by the weights of the mix.
    pub fn next_call(&mut self, spec: &spec::Workload) -> Call {
        let key = format!("{KEY_PREFIX}{}", self.random.random_range(0..spec.keys));
        let seen = self.seen.get(&key).cloned();
        let mix = &spec.mix;
        let weights = [mix.create, mix.update, mix.delete, mix.get, mix.list];
        let mut draw = self.random.random_range(0..weights.iter().sum::<u32>().max(1));
        let drawn = weights.iter().position(|weight| match draw.checked_sub(*weight) {
            Some(rest) => {
                draw = rest;
                false
            }
            None => true,
        });
        match (drawn, seen) {
            (Some(0), _) | (Some(1), None) => Call::Create { key, value: self.value() },
            (Some(1), Some(expected)) => Call::Update { key, expected, value: self.value() },
            // One in three does not care which version it deletes.
            (Some(2), expected) => {
                Call::Delete { key, expected: expected.filter(|_| self.random.random_ratio(2, 3)) }
            }
            (Some(4), _) => Call::List,
            _ => Call::Get { key },
        }
    }

    /// A value that no other write has.
    fn value(&mut self) -> String {
        self.writes += 1;
        format!("{}-{}", self.client, self.writes)
    }

    /// What the next calls build on.
    pub fn learn(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (
                Call::Create { key, value } | Call::Update { key, value, .. },
                Outcome::Written { revision },
            ) => {
                let version = Versioned { revision: *revision, value: value.clone() };
                self.seen.insert(key.clone(), version);
            }
            (Call::Get { key }, Outcome::Read(Some(found))) => {
                self.seen.insert(key.clone(), found.clone());
            }
            (_, Outcome::Listed { objects, .. }) => self.seen.clone_from(objects),
            (call, Outcome::Deleted { .. } | Outcome::Read(None) | Outcome::Refused(_)) => {
                if let Some(key) = call.key() {
                    self.seen.remove(key);
                }
            }
            _ => {}
        }
    }
}

fn object(key: &str, value: &str, revision: Option<u64>) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key}, "data": {"v": value},
    });
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object
}

/// The request of a call on a collection of ConfigMaps.
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
        Call::Get { key } => (Method::GET, path(key), None),
        Call::List => (Method::GET, collection.to_owned(), None),
    }
}

/// The object in an answer, as clients remember it.
pub fn versioned(object: &Value) -> Option<Versioned> {
    let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some(Versioned { revision, value: object["data"]["v"].as_str()?.to_owned() })
}

/// The clients' objects of a list, by key.
pub fn objects(list: &Value) -> BTreeMap<String, Versioned> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = items.iter().filter_map(|item| Some((item["metadata"]["name"].as_str()?, item)));
    let ours = named.filter(|(name, _)| name.starts_with(KEY_PREFIX));
    ours.filter_map(|(name, item)| Some((name.to_owned(), versioned(item)?))).collect()
}

/// What an answer says of its call; none where it makes no sense.
pub fn outcome(call: &Call, answer: &Answer) -> Option<Outcome> {
    let write = matches!(call, Call::Create { .. } | Call::Update { .. } | Call::Delete { .. });
    let message = answer.body["message"].as_str().unwrap_or_default();
    match answer.status {
        status if status.is_success() => match call {
            Call::Create { .. } | Call::Update { .. } => {
                Some(Outcome::Written { revision: versioned(&answer.body)?.revision })
            }
            Call::Delete { .. } => Some(Outcome::Deleted { revision: None }),
            Call::Get { .. } => Some(Outcome::Read(Some(versioned(&answer.body)?))),
            Call::List => {
                let revision = answer.body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                Some(Outcome::Listed { revision, objects: objects(&answer.body) })
            }
        },
        StatusCode::NOT_FOUND if write => Some(Outcome::Refused(Refusal::NotFound)),
        StatusCode::NOT_FOUND => Some(Outcome::Read(None)),
        StatusCode::CONFLICT if answer.body["reason"] == "AlreadyExists" => {
            Some(Outcome::Refused(Refusal::AlreadyExists))
        }
        // It gave up before it proposed the last time.
        StatusCode::CONFLICT if message.starts_with(STARVING) => Some(Outcome::NotEntered),
        StatusCode::CONFLICT if write => Some(Outcome::Refused(Refusal::Conflict)),
        // Sent only where the write certainly never entered a log.
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(Outcome::NotEntered),
        StatusCode::GATEWAY_TIMEOUT => Some(Outcome::Unknown),
        status if status.is_server_error() => Some(Outcome::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status: StatusCode::from_u16(status).unwrap(), body }
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
