//! Clients of a live run: each works on a few ConfigMaps through the API of any master, and reports every
//! call with its outcome as far as the client knows it. An unknown outcome is reported as unknown. The load
//! is open: calls begin on time, whether or not earlier ones have been answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chaos_oracle::calls::{KEY_PREFIX, outcome};
use chaos_oracle::history::{Call, Operation, Outcome};
use chaos_oracle::kind::Kind;
use chaos_oracle::memory::Memory;
use chaos_spec::experiment as spec;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::http::{Client, Failure, client};
use crate::observer::Observer;

/// Maximum number of concurrent calls of one client; further calls are skipped.
const CALLS_MAX: u32 = 16;
/// Interval between the writes of the steady client.
const STEADY: Duration = Duration::from_millis(100);
/// Maximum number of concurrent calls of the steady client: as many as begin in a few seconds without an
/// answer.
const STEADY_MAX: u32 = 64;
/// Maximum number of idle connections of one client to one master.
const IDLE_MAX: usize = 4;

/// Data shared by all clients.
#[derive(Clone)]
pub struct Workload {
    /// Credentials for connecting to the masters.
    pub access: Access,
    /// Observer to which calls are reported.
    pub observer: Observer,
    /// API path of the clients' ConfigMaps.
    pub collection: Arc<str>,
    /// Seed that decides what the clients do.
    pub seed: u64,
    /// Cancelled when no more calls may begin.
    pub ended: CancellationToken,
    spec: spec::Workload,
    masters: Arc<Mutex<Vec<SocketAddr>>>,
}

/// A client; its concurrent calls share the data.
struct Worker {
    workload: Workload,
    number: usize,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    /// Idle connections by master.
    idle: BTreeMap<SocketAddr, Vec<Client>>,
    /// Master that this client prefers for now.
    at: SocketAddr,
}

/// Returns a random number generator for part `part` of a run.
pub fn generator(seed: u64, part: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(part))
}

impl Workload {
    /// Creates the clients for an experiment's load on the ConfigMaps of `collection`; `masters` must not be
    /// empty.
    pub fn new(
        access: Access,
        observer: Observer,
        spec: &spec::Workload,
        collection: &str,
        seed: u64,
        masters: Vec<SocketAddr>,
    ) -> Self {
        Self {
            access,
            observer,
            collection: collection.into(),
            seed,
            ended: CancellationToken::new(),
            spec: *spec,
            masters: Arc::new(Mutex::new(masters)),
        }
    }

    /// Sets the masters that clients may ask from now on; an empty list changes nothing.
    pub fn set_masters(&self, masters: Vec<SocketAddr>) {
        if !masters.is_empty() {
            *self.masters.lock().unwrap_or_else(PoisonError::into_inner) = masters;
        }
    }

    /// Returns a random master that clients may ask.
    pub fn any_master(&self, random: &mut StdRng) -> SocketAddr {
        let masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        masters[random.random_range(0..masters.len())]
    }

    /// Starts all clients; the set is empty once they have ended and their last calls are answered.
    pub fn start(&self) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for number in 0..self.spec.clients as usize {
            clients.spawn(self.clone().client(number));
        }
        clients.spawn(self.clone().steady(self.spec.clients as usize));
        clients
    }

    /// Runs a client with objects of its own, whose writes no other client can make fail: ten times a second
    /// it creates an object and deletes it again, so each is acknowledged whenever writes are. The writes of
    /// other clients may by chance all be refused for half a second.
    async fn steady(self, number: usize) {
        let mut random = generator(self.seed, 1000 + number as u64);
        let in_flight = Arc::new(Semaphore::new(STEADY_MAX as usize));
        let mut ticks = tokio::time::interval(STEADY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for object in 0_u64.. {
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let at = self.any_master(&mut random);
            if let Ok(permit) = in_flight.clone().try_acquire_owned() {
                let workload = self.clone();
                tokio::spawn(async move {
                    workload.come_and_go(number, object, at).await;
                    drop(permit);
                });
            }
        }
        drop(in_flight.acquire_many(STEADY_MAX).await);
    }

    async fn come_and_go(&self, number: usize, object: u64, at: SocketAddr) {
        let key = format!("{KEY_PREFIX}steady-{object}");
        let create = Call::Create { key: key.clone(), value: format!("{number}-{object}") };
        let mut client = client(&self.access, at);
        for call in [create, Call::Delete { key, expected: None }] {
            let Some((called, returned, outcome)) = ask(self, &mut client, &call, number).await else {
                return;
            };
            self.observer.operation(Operation { client: number, call, called, returned, outcome });
        }
    }

    /// Returns the number of watching clients: as many as read and write, or 0 if the mix has no watches.
    pub fn watchers(&self) -> usize {
        if self.spec.mix.watch > 0 { self.spec.clients as usize } else { 0 }
    }

    async fn client(self, number: usize) {
        let mut random = generator(self.seed, 1000 + number as u64);
        let at = self.any_master(&mut random);
        let state =
            State { memory: Memory::new(number, &[Kind::ConfigMap], random), idle: BTreeMap::new(), at };
        let ended = self.ended.clone();
        let worker = Arc::new(Worker { workload: self, number, state: Mutex::new(state) });
        let in_flight = Arc::new(Semaphore::new(CALLS_MAX as usize));
        let mut next = tokio::time::Instant::now();
        loop {
            next += worker.pause();
            tokio::select! {
                biased;
                () = ended.cancelled() => break,
                () = tokio::time::sleep_until(next) => {}
            }
            if let Ok(permit) = in_flight.clone().try_acquire_owned() {
                let worker = worker.clone();
                tokio::spawn(async move {
                    worker.step().await;
                    drop(permit);
                });
            }
        }
        // Every call has a deadline, so this wait ends.
        drop(in_flight.acquire_many(CALLS_MAX).await);
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
        let mut client = idle.unwrap_or_else(|| client(&self.workload.access, at));
        let Some((called, returned, outcome)) = ask(&self.workload, &mut client, &call, self.number).await
        else {
            return;
        };
        {
            let state = &mut *self.lock();
            if matches!(outcome, Outcome::NotEntered | Outcome::Unknown) {
                // The call failed: try another master.
                state.at = self.workload.any_master(&mut state.memory.random);
            } else {
                let idle = state.idle.entry(at).or_default();
                if idle.len() < IDLE_MAX {
                    idle.push(client);
                }
            }
            state.memory.learn(&call, &outcome);
        }
        let client = self.number;
        self.workload.observer.operation(Operation { client, call, called, returned, outcome });
    }
}

/// Makes a call and returns it with its times and outcome; `None`, and a violation, if the answer is invalid.
async fn ask(
    workload: &Workload,
    client: &mut Client,
    call: &Call,
    number: usize,
) -> Option<(u64, u64, Outcome)> {
    let called = workload.observer.stamp();
    let answer = client.call(&workload.collection, call).await;
    let returned = workload.observer.stamp();
    let outcome = match &answer {
        Ok(answer) => outcome(call, answer.status, &answer.body),
        Err(Failure::NotSent) => Some(Outcome::NotEntered),
        Err(Failure::Unknown) => Some(Outcome::Unknown),
    };
    if outcome.is_none() {
        let what = format!("client {number}: an answer that nothing explains to {call}: {answer:?}");
        workload.observer.violation("answers", what);
    }
    outcome.map(|outcome| (called, returned, outcome))
}

/// Lists everything at one master as client `number`, retrying until `limit`; returns the list's revision.
pub async fn list_at(workload: &Workload, master: SocketAddr, number: usize, limit: Duration) -> Option<u64> {
    let end = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < end {
        let mut client = client(&workload.access, master);
        let asked = ask(workload, &mut client, &Call::List { kind: Kind::ConfigMap }, number).await;
        if let Some((called, returned, outcome)) = asked
            && let Outcome::Listed { revision, .. } = outcome
        {
            let call = Call::List { kind: Kind::ConfigMap };
            workload.observer.read_final(Operation { client: number, call, called, returned, outcome });
            return Some(revision);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    None
}
