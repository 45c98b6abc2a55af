//! The clients: each works on a few ConfigMaps through the API of whichever master
//! it likes, and reports every call with what it knows of its outcome. An outcome that is not known stays so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
use chaos_oracle::calls::outcome;
use chaos_oracle::history::{Operation, Outcome};
use chaos_oracle::memory::Memory;

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
    /// The revision of the masters when the last fault had ended.
    pub healed_at: Arc<AtomicU64>,
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
    memory: Memory,
    /// Connections that are free, by master.
    idle: BTreeMap<IpAddr, Vec<Client>>,
    /// The master this client prefers for a while.
    at: IpAddr,
}

impl Workload {
    /// The load of an experiment.
    pub fn new(spec: &spec::Workload, observer: Observer, seed: u64, links: Links) -> Self {
        let (begun, ended, healed_at, masters) = Default::default();
        Self { begun, ended, healed_at, observer, seed, links, spec: *spec, masters }
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
        if self.watchers() > 0 {
            tokio::spawn(self.clone().last_watchers());
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
        let state = Mutex::new(State { memory: Memory::new(number, random), idle: BTreeMap::new(), at });
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
        Duration::from_micros(self.lock().memory.random.random_range(0..=2 * mean_us))
    }

    async fn step(&self) {
        let (call, at, idle) = {
            let state = &mut *self.lock();
            if state.memory.random.random_ratio(1, 8) {
                state.at = self.workload.any_master(&mut state.memory.random);
            }
            let call = state.memory.next_call(&self.workload.spec);
            let idle = state.idle.get_mut(&state.at).and_then(Vec::pop);
            (call, state.at, idle)
        };
        let mut client = idle.unwrap_or_else(|| Client::new(at, self.workload.links.clone()));
        let called = self.workload.observer.stamp();
        let answer = client.call(COLLECTION, &call).await;
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
                state.at = self.workload.any_master(&mut state.memory.random);
            } else {
                state.idle.entry(at).or_default().push(client);
            }
            state.memory.learn(&call, &outcome);
        }
        let operation = Operation { client: self.number, call, called, returned, outcome };
        self.workload.observer.operation(operation, at);
    }
}
