//! Records all that can be seen of a run from outside: clients' operations, changes delivered by each
//! master's watch, leaders, and when the cluster was whole. Clients, watchers and pollers report to it; the
//! run takes the history in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chaos_oracle::Violation;
use chaos_oracle::history::{Closing, Event, History, Operation, Outcome, Stamps, Truth, Watched};

use crate::view::{Leader, Views};

/// Range of revisions that a watch has delivered without a gap: those after `from`, up to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// Revision before the first covered one.
    pub from: u64,
    /// Last covered revision.
    pub to: u64,
}

struct Seen {
    stamps: Stamps,
    operations: Vec<Operation>,
    /// Revisions of acknowledged writes.
    promised: BTreeSet<u64>,
    acknowledged: usize,
    last_acknowledged: Duration,
    watches: BTreeMap<usize, Watched>,
    /// Highest revision that each watching client has reached.
    reached: BTreeMap<usize, u64>,
    /// Indexes of the operations that read the final state of a master.
    finals: Vec<usize>,
    closing: Option<Closing>,
    truth: BTreeMap<u64, Event>,
    violations: Vec<Violation>,
    views: Views,
    /// Moments at which the cluster became whole (`true`) or ceased to be whole (`false`).
    wholeness: Vec<(Duration, bool)>,
}

/// Collects what is seen of the run; clones share the data.
#[derive(Clone)]
pub struct Observer {
    begun: Instant,
    seen: Arc<Mutex<Seen>>,
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer {
    /// Creates an empty observer, whose clock begins now.
    pub fn new() -> Self {
        let seen = Seen {
            stamps: Stamps::default(),
            operations: Vec::new(),
            promised: BTreeSet::new(),
            acknowledged: 0,
            last_acknowledged: Duration::ZERO,
            watches: BTreeMap::new(),
            reached: BTreeMap::new(),
            finals: Vec::new(),
            closing: None,
            truth: BTreeMap::new(),
            violations: Vec::new(),
            views: Views::default(),
            wholeness: Vec::new(),
        };
        Self { begun: Instant::now(), seen: Arc::new(Mutex::new(seen)) }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time since the observer was created.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns the stamp of this moment in the history, in nanoseconds.
    pub fn stamp(&self) -> u64 {
        let now = u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.lock().stamps.next(now)
    }

    /// Records a client's operation that has ended.
    pub fn operation(&self, operation: Operation) {
        let now = self.elapsed();
        let mut seen = self.lock();
        if let Outcome::Written { .. } | Outcome::Deleted { .. } = operation.outcome {
            seen.acknowledged += 1;
            seen.last_acknowledged = now;
        }
        if let Outcome::Written { revision } = operation.outcome {
            seen.promised.insert(revision);
        }
        seen.operations.push(operation);
    }

    /// Records what a watching client has seen so far.
    pub fn watched(&self, watched: Watched) {
        self.lock().watches.insert(watched.client, watched);
    }

    /// Records that a watching client has reached this revision.
    pub fn reaches(&self, client: usize, revision: u64) {
        self.lock().reached.insert(client, revision);
    }

    /// Records an operation that has read the final state of a master.
    pub fn read_final(&self, operation: Operation) {
        let mut seen = self.lock();
        let number = seen.operations.len();
        seen.finals.push(number);
        seen.operations.push(operation);
    }

    /// Sets the revision that the watches of these clients must reach from now on.
    pub fn close(&self, revision: u64, clients: Vec<usize>) {
        self.lock().closing = Some(Closing { revision, clients });
    }

    /// Returns whether these watches have reached the revision set by [`Observer::close`].
    pub fn is_closed(&self) -> bool {
        let seen = self.lock();
        let Some(closing) = &seen.closing else { return true };
        let reached = |client| seen.reached.get(client).is_some_and(|reached| *reached >= closing.revision);
        closing.clients.iter().all(reached)
    }

    /// Records a change that a master's own watch delivered.
    pub fn applied(&self, master: u64, event: Event) {
        let mut seen = self.lock();
        let known = seen.truth.entry(event.revision).or_insert_with(|| event.clone()).clone();
        if known != event {
            let what = format!("master {master} applied {event}, another {known}");
            seen.violations.push(Violation { check: "replicas-identical", what });
        }
    }

    /// Records a violation.
    pub fn violation(&self, check: &'static str, what: String) {
        tracing::error!(check, what, "violation");
        self.lock().violations.push(Violation { check, what });
    }

    /// Gives access to what the masters said of themselves.
    pub fn views<T>(&self, look: impl FnOnce(&mut Views) -> T) -> T {
        look(&mut self.lock().views)
    }

    /// Records whether the cluster is whole as of now.
    pub fn whole(&self, whole: bool) {
        let now = self.elapsed();
        let mut seen = self.lock();
        if seen.wholeness.last().is_none_or(|(_, before)| *before != whole) {
            seen.wholeness.push((now, whole));
        }
    }

    /// Returns the number of acknowledged writes, and when the last was acknowledged.
    pub fn acknowledged(&self) -> (usize, Duration) {
        let seen = self.lock();
        (seen.acknowledged, seen.last_acknowledged)
    }

    /// Counts acknowledged writes at or below revision `covered` that no master's watch delivered.
    pub fn lost(&self, covered: u64) -> u64 {
        let seen = self.lock();
        seen.promised.range(..=covered).filter(|revision| !seen.truth.contains_key(revision)).count() as u64
    }

    /// Returns the leader of each term, and since when it was seen.
    pub fn leaders(&self) -> Vec<Leader> {
        self.lock().views.leaders()
    }

    /// Returns the moments at which the cluster became whole (`true`) or ceased to be whole (`false`).
    pub fn wholeness(&self) -> Vec<(Duration, bool)> {
        self.lock().wholeness.clone()
    }

    /// Takes the whole history, and the violations noticed during the run.
    pub fn take(&self) -> (History, Vec<Violation>) {
        let mut seen = self.lock();
        let mut violations = std::mem::take(&mut seen.violations);
        violations.extend(seen.views.violations());
        let history = History {
            operations: std::mem::take(&mut seen.operations),
            watches: std::mem::take(&mut seen.watches).into_values().collect(),
            truth: Truth { events: std::mem::take(&mut seen.truth).into_values().collect() },
            finals: std::mem::take(&mut seen.finals),
            closing: seen.closing.take(),
        };
        (history, violations)
    }
}

/// Returns the revision up to which the covered ranges have no gap, from `origin` on.
pub fn reached(origin: u64, covered: &[Covered]) -> u64 {
    let sorted: BTreeSet<(u64, u64)> = covered.iter().map(|part| (part.from, part.to)).collect();
    sorted
        .into_iter()
        .fold(origin, |reached, (from, to)| if from <= reached { reached.max(to) } else { reached })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chaos_oracle::history::{Call, Change};

    fn covered(parts: &[(u64, u64)]) -> Vec<Covered> {
        parts.iter().map(|(from, to)| Covered { from: *from, to: *to }).collect()
    }

    #[test]
    fn the_truth_reaches_as_far_as_somebody_saw_without_a_gap() {
        assert_eq!(reached(5, &[]), 5);
        assert_eq!(reached(5, &covered(&[(5, 9), (20, 30)])), 9);
        assert_eq!(reached(5, &covered(&[(20, 30), (5, 9), (8, 20)])), 30);
        assert_eq!(reached(5, &covered(&[(6, 9)])), 5);
    }

    #[test]
    fn a_promise_that_no_watch_tells_of_is_lost_once_the_truth_has_passed_it() {
        let observer = Observer::new();
        let write = |revision: u64| Operation {
            client: 0,
            call: Call::Create { key: "reg-1".into(), value: format!("v{revision}") },
            called: revision * 10,
            returned: revision * 10 + 5,
            outcome: Outcome::Written { revision },
        };
        [7, 8].into_iter().for_each(|revision| observer.operation(write(revision)));
        let change = Change::Put { value: "v7".into() };
        observer.applied(1, Event { revision: 7, key: "reg-1".into(), change });
        assert_eq!((observer.lost(7), observer.lost(8)), (0, 1));
    }
}
