//! The clients: each works on a few ConfigMaps through the API of whichever master
//! it likes, one call after the other, and reports every call with what it knows
//! of its outcome. An outcome that is not known stays so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use rand::rngs::StdRng;
use rand::Rng;
use serde_json::{Value, json};

use crate::history::{Call, Operation, Outcome, Refusal, Versioned};
use crate::http::{Answer, Client, Failure};
use crate::machine;
use crate::observer::{KEY_PREFIX, Observer};
use crate::seams::random::generator;

/// Where the clients' objects are.
pub const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets";
/// Longest pause between two calls of a client, in milliseconds.
const PAUSE_MS: u64 = 120;

/// What all clients share.
#[derive(Clone)]
pub struct Workload {
    /// The masters' addresses.
    pub masters: Vec<IpAddr>,
    /// How many objects there are.
    pub keys: usize,
    /// Set when the clients may begin.
    pub begun: Arc<AtomicBool>,
    /// Set when no more calls may begin.
    pub ended: Arc<AtomicBool>,
    /// Where calls are reported.
    pub observer: Observer,
    /// Seed of the run.
    pub seed: u64,
}

struct Worker {
    number: usize,
    workload: Workload,
    random: StdRng,
    connections: BTreeMap<IpAddr, Client>,
    /// The master this client prefers for a while.
    at: IpAddr,
    /// What it last saw of each object.
    seen: BTreeMap<String, Versioned>,
    writes: u64,
}

impl Workload {
    /// Client number `number`, until the end of the run.
    pub async fn client(self, number: usize) {
        let mut random = generator(self.seed, 1000 + number as u64);
        let at = self.masters[random.random_range(0..self.masters.len())];
        let (connections, seen) = Default::default();
        let mut worker = Worker { number, workload: self, random, connections, at, seen, writes: 0 };
        loop {
            tokio::time::sleep(Duration::from_millis(worker.random.random_range(1..PAUSE_MS))).await;
            let flag = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
            if flag(&worker.workload.begun) && !flag(&worker.workload.ended) {
                worker.step().await;
            }
        }
    }
}

/// Stores the token that masters join with, as soon as there is an API.
pub async fn store_token(founder: IpAddr) {
    let token = machine::token();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "usage-ephor-join-master": "true",
        },
    });
    let mut client = Client::new(founder);
    loop {
        if let Ok(answer) = client.ask(Method::POST, TOKENS, Some(&secret)).await
            && (answer.status.is_success() || answer.status == StatusCode::CONFLICT)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Worker {
    async fn step(&mut self) {
        if self.random.random_ratio(1, 8) {
            let masters = &self.workload.masters;
            self.at = masters[self.random.random_range(0..masters.len())];
        }
        let call = self.next_call();
        let called = self.workload.observer.stamp();
        let (method, path, body) = request(&call);
        let at = self.at;
        let client = self.connections.entry(at).or_insert_with(|| Client::new(at));
        let answer = client.ask(method, &path, body.as_ref()).await;
        let returned = self.workload.observer.stamp();
        let outcome = match answer {
            Ok(answer) => outcome(&call, &answer),
            Err(Failure::NotSent) => Some(Outcome::NotEntered),
            Err(Failure::Unknown) => Some(Outcome::Unknown),
        };
        let Some(outcome) = outcome else {
            let what = format!("client {}: an answer that nothing explains to {call}", self.number);
            return self.workload.observer.violation("answers", what);
        };
        if matches!(outcome, Outcome::NotEntered | Outcome::Unknown) {
            // Elsewhere it may go better.
            let masters = &self.workload.masters;
            self.at = masters[self.random.random_range(0..masters.len())];
        }
        self.learn(&call, &outcome);
        self.workload.observer.operation(Operation { client: self.number, call, called, returned, outcome });
    }

    fn next_call(&mut self) -> Call {
        let key = format!("{KEY_PREFIX}{}", self.random.random_range(0..self.workload.keys));
        let seen = self.seen.get(&key).cloned();
        match (self.random.random_range(0..100), seen) {
            (0..45, Some(expected)) => Call::Update { key, expected, value: self.value() },
            (0..45, None) => Call::Create { key, value: self.value() },
            (45..52, Some(expected)) => Call::Delete { key, expected: Some(expected) },
            (52..55, _) => Call::Delete { key, expected: None },
            (55..62, _) => Call::Create { key, value: self.value() },
            (62..70, _) => Call::List,
            _ => Call::Get { key },
        }
    }

    /// A value that no other write has.
    fn value(&mut self) -> String {
        self.writes += 1;
        format!("{}-{}", self.number, self.writes)
    }

    /// What the next calls build on.
    fn learn(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (Call::Create { key, value } | Call::Update { key, value, .. }, Outcome::Written { revision }) => {
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
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key, "namespace": "default"},
        "data": {"v": value},
    });
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object
}

fn request(call: &Call) -> (Method, String, Option<Value>) {
    let path = |key: &str| format!("{COLLECTION}/{key}");
    match call {
        Call::Create { key, value } => {
            (Method::POST, COLLECTION.to_owned(), Some(object(key, value, None)))
        }
        Call::Update { key, expected, value } => {
            (Method::PUT, path(key), Some(object(key, value, Some(expected.revision))))
        }
        Call::Delete { key, expected } => {
            let options = expected.as_ref().map(|expected| {
                let revision = expected.revision.to_string();
                json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"resourceVersion": revision}})
            });
            (Method::DELETE, path(key), options)
        }
        Call::Get { key } => (Method::GET, path(key), None),
        Call::List => (Method::GET, COLLECTION.to_owned(), None),
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
fn outcome(call: &Call, answer: &Answer) -> Option<Outcome> {
    let write = matches!(call, Call::Create { .. } | Call::Update { .. } | Call::Delete { .. });
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
