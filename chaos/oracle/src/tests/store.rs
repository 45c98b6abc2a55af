//! A tiny correct store with concurrent clients, lost answers, writes that take effect late, and watchers,
//! for the tests in `super`. Deterministic by its seed.

use std::collections::BTreeMap;

use super::super::fixtures::Random;
use crate::history::{
    Call, Change, Event, History, Operation, Outcome, Refusal, Stamps, Stream, Versioned, Watched,
};
use crate::kind::Kind;

const CLIENTS: usize = 5;
const WATCHERS: usize = 3;
const KEYS: [&str; 3] = ["a", "b", "leases/c"];

type Objects = BTreeMap<String, Versioned>;

/// Returns the objects of a kind.
fn of(kind: Kind, objects: &Objects) -> Objects {
    objects.iter().filter(|(key, _)| Kind::of(key) == kind).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[derive(Clone)]
enum Client {
    Idle,
    Called(usize),
    Applied(usize, Outcome),
}

struct Store {
    random: Random,
    stamps: Stamps,
    now: u64,
    revision: u64,
    objects: Objects,
    snapshots: BTreeMap<u64, Objects>,
    seen: Vec<Objects>,
    clients: Vec<Client>,
    /// Operations that may still happen though their client has given up.
    limbo: Vec<usize>,
    history: History,
}

/// Produces the history of a correct run.
pub(super) fn run(seed: u64, steps: usize) -> History {
    let mut store = Store {
        random: Random::new(seed),
        stamps: Stamps::default(),
        now: 0,
        revision: 0,
        objects: Objects::new(),
        snapshots: BTreeMap::from([(0, Objects::new())]),
        seen: vec![Objects::new(); CLIENTS],
        clients: vec![Client::Idle; CLIENTS],
        limbo: Vec::new(),
        history: History::default(),
    };
    for _ in 0..steps {
        store.step();
    }
    for watcher in 0..WATCHERS {
        let kind = if watcher == 0 { Kind::Lease } else { Kind::ConfigMap };
        store.watch(100 + watcher, kind);
    }
    store.history
}

impl Store {
    fn step(&mut self) {
        // Time often stands still, as in the simulation.
        self.now += u64::from(self.random.below(3) == 0);
        if self.random.below(12) == 0 && !self.limbo.is_empty() {
            let late = self.limbo.swap_remove(self.random.below(self.limbo.len()));
            self.apply(late);
        }
        let client = self.random.below(CLIENTS);
        self.clients[client] = match self.clients[client].clone() {
            Client::Idle => self.call(client),
            Client::Called(number) => match self.random.below(20) {
                0 => {
                    self.limbo.push(number);
                    Client::Idle
                }
                1 => {
                    self.history.operations[number].outcome = Outcome::NotEntered;
                    Client::Idle
                }
                _ => Client::Applied(number, self.apply(number)),
            },
            // The answer is lost.
            Client::Applied(..) if self.random.below(15) == 0 => Client::Idle,
            Client::Applied(number, outcome) => {
                self.answer(client, number, outcome);
                Client::Idle
            }
        };
    }

    fn call(&mut self, client: usize) -> Client {
        let key = KEYS[self.random.below(KEYS.len())].to_owned();
        let kind = Kind::of(&key);
        let number = self.history.operations.len();
        let value = format!("v{number}");
        let seen = self.seen[client].get(&key).cloned();
        let call = match (self.random.below(13), seen) {
            (0..3, _) => Call::Create { key, value },
            (3..7, Some(expected)) => Call::Update { key, expected, value },
            (7, expected) => Call::Delete { key, expected: expected.filter(|_| self.random.below(2) == 0) },
            (8, _) => Call::List { kind },
            (10, _) => Call::Patch { key, value },
            (11, _) => Call::Pages { kind, limit: 2 },
            (12, _) => Call::ListAny { kind },
            _ => Call::Get { key },
        };
        let called = self.stamps.next(self.now);
        let outcome = Outcome::Unknown;
        self.history.operations.push(Operation { client, call, called, returned: 0, outcome });
        Client::Called(number)
    }

    fn answer(&mut self, client: usize, number: usize, outcome: Outcome) {
        let operation = &mut self.history.operations[number];
        operation.returned = self.stamps.next(self.now);
        operation.outcome = outcome.clone();
        let seen = &mut self.seen[client];
        match (&operation.call, outcome) {
            (Call::Get { key }, Outcome::Read(Some(found))) => drop(seen.insert(key.clone(), found)),
            (call, Outcome::Listed { objects, .. }) => {
                seen.retain(|key, _| Kind::of(key) != call.kind());
                seen.extend(objects);
            }
            (
                Call::Create { key, value } | Call::Update { key, value, .. } | Call::Patch { key, value },
                Outcome::Written { revision },
            ) => {
                seen.insert(key.clone(), Versioned { revision, value: value.clone() });
            }
            _ => {}
        }
    }

    fn apply(&mut self, number: usize) -> Outcome {
        let call = self.history.operations[number].call.clone();
        let key = call.key().unwrap_or_default();
        let current = self.objects.get(key).cloned();
        let differs = |expected: &Versioned| current.as_ref().is_some_and(|current| current != expected);
        match &call {
            Call::Create { .. } if current.is_some() => Outcome::Refused(Refusal::AlreadyExists),
            Call::Update { .. } | Call::Delete { .. } | Call::Patch { .. } if current.is_none() => {
                Outcome::Refused(Refusal::NotFound)
            }
            Call::Update { expected, .. } | Call::Delete { expected: Some(expected), .. }
                if differs(expected) =>
            {
                Outcome::Refused(Refusal::Conflict)
            }
            Call::Create { value, .. } | Call::Update { value, .. } | Call::Patch { value, .. } => {
                let revision = self.change(key, Change::Put { value: value.clone() });
                Outcome::Written { revision }
            }
            Call::Delete { .. } => {
                let revision = self.change(key, Change::Deleted { value: current.unwrap().value });
                Outcome::Deleted { revision: (self.random.below(2) == 0).then_some(revision) }
            }
            Call::Get { .. } => Outcome::Read(current),
            Call::List { kind } | Call::Pages { kind, .. } => {
                Outcome::Listed { revision: self.revision, objects: of(*kind, &self.objects) }
            }
            Call::ListAny { kind } => {
                let now = usize::try_from(self.revision).unwrap();
                let revision = u64::try_from(self.random.below(now + 1)).unwrap();
                let objects = of(*kind, self.snapshots.range(..=revision).next_back().unwrap().1);
                Outcome::Shown { revision, objects }
            }
        }
    }

    fn change(&mut self, key: &str, change: Change) -> u64 {
        // Changes of other objects use revisions too.
        self.revision += 1 + u64::from(self.random.below(4) == 0);
        let revision = self.revision;
        match &change {
            Change::Put { value } => {
                let version = Versioned { revision, value: value.clone() };
                self.objects.insert(key.to_owned(), version);
            }
            Change::Deleted { .. } => drop(self.objects.remove(key)),
        }
        self.history.truth.events.push(Event { revision, key: key.to_owned(), change });
        self.snapshots.insert(revision, self.objects.clone());
        revision
    }

    fn watch(&mut self, client: usize, kind: Kind) {
        let mut streams = Vec::new();
        let mut seen = 0;
        while seen < self.revision {
            let left = usize::try_from(self.revision - seen).unwrap();
            let relist = self.random.below(3) == 0;
            // A list may skip events that the watch has not delivered.
            let from = seen + if relist { u64::try_from(self.random.below(left.min(4))).unwrap() } else { 0 };
            let left = usize::try_from(self.revision - from).unwrap();
            let reached = from + u64::try_from(1 + self.random.below(left.min(12))).unwrap();
            let events = self.history.truth.events.iter();
            let events = events.filter(|e| e.revision > from && e.revision <= reached);
            let events = events.filter(|e| Kind::of(&e.key) == kind).cloned().collect();
            let snapshot = || of(kind, self.snapshots.range(..=from).next_back().unwrap().1);
            streams.push(Stream { from, listed: relist.then(snapshot), events, reached });
            seen = reached;
        }
        self.history.watches.push(Watched { client, kind, streams });
    }
}
