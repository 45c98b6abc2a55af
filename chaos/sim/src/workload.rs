//! The clients: each works on a few objects of several kinds through the API of any master, and reports every call with its
//! outcome as far as the client knows it. An unknown outcome is reported as unknown.

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

use crate::http::{Client, Failure, client};
use crate::machine;
use crate::observer::Observer;
use crate::seams::links::Links;
use crate::seams::random::generator;
use chaos_oracle::calls::outcome;
use chaos_oracle::history::{Operation, Outcome};
use chaos_oracle::kind::Kind;
use chaos_oracle::memory::Memory;

/// Namespace of the clients' objects.
pub const NAMESPACE: &str = "default";
const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets";
/// Maximum number of concurrent calls of one client; further calls are skipped.
const CALLS_MAX: usize = 16;

/// Data shared by all clients.
#[derive(Clone)]
pub struct Workload {
    /// Set to true when the clients may begin.
    pub begun: Arc<AtomicBool>,
    /// Set to true when no more calls may begin.
    pub ended: Arc<AtomicBool>,
    /// Revision of the masters when the last fault had ended.
    pub healed_at: Arc<AtomicU64>,
    /// Observer to which calls are reported.
    pub observer: Observer,
    /// Seed of the run.
    pub seed: u64,
    /// Links between all machines.
    pub links: Links,
    spec: spec::Workload,
    masters: Arc<Mutex<Vec<IpAddr>>>,
}

/// A client; its concurrent calls share the data.
struct Worker {
    number: usize,
    workload: Workload,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    /// Idle connections by master.
    idle: BTreeMap<IpAddr, Vec<Client>>,
    /// Master that this client prefers for now.
    at: IpAddr,
}

impl Workload {
    /// Creates the clients for an experiment's load.
    pub fn new(spec: &spec::Workload, observer: Observer, seed: u64, links: Links) -> Self {
        let (begun, ended, healed_at, masters) = Default::default();
        Self { begun, ended, healed_at, observer, seed, links, spec: *spec, masters }
    }

    /// Sets the masters that clients may ask from now on.
    pub fn set_masters(&self, masters: Vec<IpAddr>) {
        *self.masters.lock().unwrap_or_else(PoisonError::into_inner) = masters;
    }

    /// Returns the masters that clients may ask.
    pub fn masters(&self) -> Vec<IpAddr> {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a random master that clients may ask.
    pub fn any_master(&self, random: &mut StdRng) -> IpAddr {
        let masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        masters[random.random_range(0..masters.len())]
    }

    /// Returns a random master other than `than`, if there is another.
    pub fn another_master(&self, than: IpAddr, random: &mut StdRng) -> IpAddr {
        let masters = self.masters();
        let others: Vec<_> = masters.iter().filter(|ip| **ip != than).collect();
        others.get(random.random_range(0..others.len().max(1))).map_or(than, |ip| **ip)
    }

    /// Returns the number of clients that read and write.
    pub fn clients(&self) -> usize {
        self.spec.clients as usize
    }

    /// Returns the number of watching clients: as many as read and write, or 0 if the mix has no watches.
    pub fn watchers(&self) -> usize {
        if self.spec.mix.watch > 0 { self.clients() } else { 0 }
    }

    /// Runs all clients until the end of the run.
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

    /// Runs client number `number` until the end of the run. The load is open: calls begin on time, whether
    /// or not earlier ones have been answered.
    pub async fn client(self, number: usize) {
        let mut random = generator(self.seed, 1000 + number as u64);
        let at = self.any_master(&mut random);
        let state =
            Mutex::new(State { memory: Memory::new(number, Kind::ALL, random), idle: BTreeMap::new(), at });
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

/// Stores the join token for masters as soon as the API answers.
pub async fn store_token(founder: IpAddr, links: Links) {
    let token = machine::token();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "usage-ephor-join-master": "true",
        },
    });
    let mut client = client(founder, links);
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

    /// Draws the pause until the next call: between zero and twice the mean.
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
        let mut client = idle.unwrap_or_else(|| client(at, self.workload.links.clone()));
        let called = self.workload.observer.stamp();
        let answer = client.call(&call.kind().collection(NAMESPACE), &call).await;
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
                // The call failed: try another master.
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
