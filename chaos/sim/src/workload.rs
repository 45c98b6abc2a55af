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
use serde_json::json;
use tokio::sync::Semaphore;

use crate::http::{Client, Failure};
use crate::machine;
use crate::observer::Observer;
use crate::seams::links::Links;
use crate::seams::random::generator;
use chaos_oracle::calls::{KEY_PREFIX, outcome, request};
use chaos_oracle::history::{Call, Operation, Outcome, Versioned};

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

    /// A master other than this one, where there is another.
    pub fn another_master(&self, than: IpAddr, random: &mut StdRng) -> IpAddr {
        let masters = self.masters();
        let others: Vec<_> = masters.iter().filter(|ip| **ip != than).collect();
        others.get(random.random_range(0..others.len().max(1))).map_or(than, |ip| **ip)
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
        let (method, path, body) = request(COLLECTION, &call);
        let answer = client.ask(method, &path, body.as_ref()).await;
        let returned = self.workload.observer.stamp();
        let outcome = match answer {
            Ok(answer) => outcome(&call, answer.status, &answer.body),
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
