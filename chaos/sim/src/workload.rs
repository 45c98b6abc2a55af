//! The clients: each works on a few ConfigMaps through the API of whichever master
//! it likes, and reports every call with what it knows of its outcome. An outcome that is not known stays so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chaos_spec::experiment as spec;
use http::{Method, StatusCode};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::http::{Answer, Client, Failure};
use crate::machine;
use crate::observer::{KEY_PREFIX, Observer};
use crate::seams::links::Links;
use crate::seams::random::generator;
use chaos_oracle::history::{Call, Operation, Outcome, Refusal, Versioned};

/// Where the clients' objects are.
pub const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets";
/// Calls of one client that overlap; more are not begun.
const CALLS_MAX: usize = 16;

/// What all clients share.
#[derive(Clone)]
pub struct Workload {
    /// Set when the clients may begin.
    pub begun: Arc<AtomicBool>,
    /// Set when no more calls may begin.
    pub ended: Arc<AtomicBool>,
    /// Where calls are reported.
    pub observer: Observer,
    /// Seed of the run.
    pub seed: u64,
    /// The ways between all machines.
    pub links: Links,
    spec: spec::Workload,
    masters: Arc<Mutex<Vec<IpAddr>>>,
}

/// A client; calls that overlap share it.
struct Worker {
    number: usize,
    workload: Workload,
    state: Mutex<State>,
}

struct State {
    random: StdRng,
    /// Connections that are free, by master.
    idle: BTreeMap<IpAddr, Vec<Client>>,
    /// The master this client prefers for a while.
    at: IpAddr,
    /// What it last saw of each object.
    seen: BTreeMap<String, Versioned>,
    writes: u64,
}

impl Workload {
    /// The load of an experiment.
    pub fn new(spec: &spec::Workload, observer: Observer, seed: u64, links: Links) -> Self {
        let (begun, ended, masters) = Default::default();
        Self { begun, ended, observer, seed, links, spec: *spec, masters }
    }

    /// Which masters the clients may ask from now on.
    pub fn set_masters(&self, masters: Vec<IpAddr>) {
        *self.masters.lock().unwrap_or_else(PoisonError::into_inner) = masters;
    }

    /// Those.
    pub fn masters(&self) -> Vec<IpAddr> {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of them.
    pub fn any_master(&self, random: &mut StdRng) -> IpAddr {
        let masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        masters[random.random_range(0..masters.len())]
    }

    /// How many clients read and write.
    pub fn clients(&self) -> usize {
        self.spec.clients as usize
    }

    /// How many clients watch: one for each of the others, if the experiment watches at all.
    pub fn watchers(&self) -> usize {
        if self.spec.mix.watch > 0 { self.clients() } else { 0 }
    }

    /// All clients, until the end of the run.
    pub async fn everyone(self) {
        for number in 0..self.watchers() {
            tokio::spawn(self.clone().watcher(number));
        }
        for number in 0..self.clients() {
            tokio::spawn(self.clone().client(number));
        }
        std::future::pending().await
    }

    /// Client number `number`, until the end of the run. The load is open: calls begin when it is time, answered
    /// or not.
    pub async fn client(self, number: usize) {
        let mut random = generator(self.seed, 1000 + number as u64);
        let at = self.any_master(&mut random);
        let (idle, seen) = Default::default();
        let state = Mutex::new(State { random, idle, at, seen, writes: 0 });
        let worker = Arc::new(Worker { number, workload: self, state });
        let in_flight = Arc::new(Semaphore::new(CALLS_MAX));
        let flag = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(worker.pause()).await;
            if flag(&worker.workload.begun)
                && !flag(&worker.workload.ended)
                && let Ok(permit) = in_flight.clone().try_acquire_owned()
            {
                let worker = worker.clone();
                tokio::spawn(async move {
                    worker.step().await;
                    drop(permit);
                });
            }
        }
    }
}

/// Stores the token that masters join with, as soon as there is an API.
pub async fn store_token(founder: IpAddr, links: Links) {
    let token = machine::token();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "usage-ephor-join-master": "true",
        },
    });
    let mut client = Client::new(founder, links);
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the next call: between nothing and twice the mean.
    fn pause(&self) -> Duration {
        let mean_us = 1_000_000 * u64::from(self.workload.spec.clients) / u64::from(self.workload.spec.rate);
        Duration::from_micros(self.lock().random.random_range(0..=2 * mean_us))
    }

    async fn step(&self) {
        let (call, at, idle) = {
            let state = &mut *self.lock();
            if state.random.random_ratio(1, 8) {
                state.at = self.workload.any_master(&mut state.random);
            }
            let call = state.next_call(self.number, &self.workload.spec);
            let idle = state.idle.get_mut(&state.at).and_then(Vec::pop);
            (call, state.at, idle)
        };
        let mut client = idle.unwrap_or_else(|| Client::new(at, self.workload.links.clone()));
        let called = self.workload.observer.stamp();
        let (method, path, body) = request(&call);
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
        {
            let state = &mut *self.lock();
            if matches!(outcome, Outcome::NotEntered | Outcome::Unknown) {
                // Elsewhere it may go better.
                state.at = self.workload.any_master(&mut state.random);
            } else {
                state.idle.entry(at).or_default().push(client);
            }
            state.learn(&call, &outcome);
        }
        let operation = Operation { client: self.number, call, called, returned, outcome };
        self.workload.observer.operation(operation, at);
    }
}

impl State {
    fn next_call(&mut self, client: usize, spec: &spec::Workload) -> Call {
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
            (Some(0), _) | (Some(1), None) => Call::Create { key, value: self.value(client) },
            (Some(1), Some(expected)) => Call::Update { key, expected, value: self.value(client) },
            // One in three does not care which version it deletes.
            (Some(2), expected) => {
                Call::Delete { key, expected: expected.filter(|_| self.random.random_ratio(2, 3)) }
            }
            (Some(4), _) => Call::List,
            _ => Call::Get { key },
        }
    }

    /// A value that no other write has.
    fn value(&mut self, client: usize) -> String {
        self.writes += 1;
        format!("{client}-{}", self.writes)
    }

    /// What the next calls build on.
    fn learn(&mut self, call: &Call, outcome: &Outcome) {
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
        Call::Create { key, value } => (Method::POST, COLLECTION.to_owned(), Some(object(key, value, None))),
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

/// How the API server says that it gave a write up because others always came first.
const STARVING: &str = "the object changed too often";

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or_default()
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
        // It gave up before it proposed the last time.
        StatusCode::CONFLICT if message(answer).starts_with(STARVING) => Some(Outcome::NotEntered),
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
