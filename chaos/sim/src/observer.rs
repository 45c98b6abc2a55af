//! Sees everything: what clients did, what every replica applied, who led when.
//! Machines attach their masters, clients report their operations, the run takes
//! the history in the end. Here also the invariants that hold at every moment:
//! one leader a term (Raft, Ongaro and Ousterhout 2014, "Election Safety") and
//! the same change at the same revision on every replica ("State Machine Safety").

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use consensus::Consensus;
use storage::{Object, WatchEvent, WatchItem};

use crate::history::{Change, Event, History, Operation, Outcome, Stamps, Truth, Watched};
use crate::oracle::Violation;
use crate::seams::clock;

/// Where the clients' objects lie in the store.
const PREFIX: &str = "/registry/core/configmaps/default/";
/// What their names begin with; others in the namespace are the cluster's own.
pub const KEY_PREFIX: &str = "reg-";

#[derive(Default)]
struct Seen {
    stamps: Stamps,
    operations: Vec<Operation>,
    acknowledged: usize,
    watches: BTreeMap<usize, Watched>,
    truth: BTreeMap<u64, Event>,
    /// Who led each term.
    leaders: BTreeMap<u64, usize>,
    violations: Vec<Violation>,
    masters: BTreeMap<usize, Weak<Consensus>>,
}

/// What is seen of the run; clones share it.
#[derive(Clone, Default)]
pub struct Observer(Arc<Mutex<Seen>>);

fn violation(check: &'static str, what: String) -> Violation {
    tracing::error!(check, what, "violation");
    Violation { check, what }
}

impl Observer {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of this moment in the history.
    pub fn stamp(&self) -> u64 {
        let now = u64::try_from(clock::elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.lock().stamps.next(now)
    }

    /// A client's operation has ended.
    pub fn operation(&self, operation: Operation) {
        tracing::info!(target: "client", %operation, "operation");
        let mut seen = self.lock();
        seen.acknowledged += usize::from(matches!(operation.outcome, Outcome::Written { .. }));
        seen.operations.push(operation);
    }

    /// What a watching client has seen so far.
    pub fn watched(&self, watched: Watched) {
        self.lock().watches.insert(watched.client, watched);
    }

    /// Something that must never happen has happened.
    pub fn violation(&self, check: &'static str, what: String) {
        let violation = violation(check, what);
        self.lock().violations.push(violation);
    }

    /// Looks into the master that starts on machine `index`, until it ends.
    pub fn attach(&self, index: usize, consensus: &Arc<Consensus>) {
        self.lock().masters.insert(index, Arc::downgrade(consensus));
        tokio::spawn(follow_leadership(self.clone(), index, consensus.leadership()));
        let store = consensus.store();
        let from = store.revision();
        if let Ok(page) = store.range(PREFIX, None, 0, None) {
            for object in &page.objects {
                self.applied(index, object.mod_revision, Some(object), None);
            }
        }
        match store.watch(PREFIX, from) {
            Ok(watch) => drop(tokio::spawn(follow_store(self.clone(), index, watch))),
            Err(error) => self.violation("observer", format!("m{}: {error}", index + 1)),
        }
    }

    /// The masters that run, by machine.
    pub fn masters(&self) -> Vec<(usize, Arc<Consensus>)> {
        let seen = self.lock();
        let masters = seen.masters.iter();
        masters.filter_map(|(index, weak)| Some((*index, weak.upgrade()?))).collect()
    }

    /// The machine whose master leads, as it thinks itself; of several the one of the latest term.
    pub fn leader(&self) -> Option<usize> {
        let leading = self.masters().into_iter().filter_map(|(index, consensus)| {
            let now = *consensus.leadership().borrow();
            now.leading.then_some((now.term, index))
        });
        leading.max().map(|(_, index)| index)
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.lock().acknowledged
    }

    /// How many terms had a leader.
    pub fn elections(&self) -> u64 {
        self.lock().leaders.len() as u64
    }

    /// Everything seen, and the violations noticed on the way.
    pub fn take(&self) -> (History, Vec<Violation>) {
        let mut seen = self.lock();
        let history = History {
            operations: std::mem::take(&mut seen.operations),
            watches: std::mem::take(&mut seen.watches).into_values().collect(),
            truth: Truth { events: std::mem::take(&mut seen.truth).into_values().collect() },
        };
        (history, std::mem::take(&mut seen.violations))
    }

    fn leads(&self, index: usize, term: u64) {
        let mut seen = self.lock();
        let other = *seen.leaders.entry(term).or_insert(index);
        if other != index {
            let what = format!("m{} and m{} both lead term {term}", other + 1, index + 1);
            seen.violations.push(violation("one-leader-per-term", what));
        }
    }

    fn applied(&self, index: usize, revision: u64, now: Option<&Object>, before: Option<&Object>) {
        let Some(event) = event_of(revision, now, before) else { return };
        let mut seen = self.lock();
        let known = seen.truth.entry(revision).or_insert_with(|| event.clone());
        if *known != event {
            let what = format!("m{} applied {event}, another master {known}", index + 1);
            seen.violations.push(violation("replicas-identical", what));
        }
    }
}

/// The change as clients would see it; none for objects that are not theirs.
fn event_of(revision: u64, now: Option<&Object>, before: Option<&Object>) -> Option<Event> {
    let object = now.or(before)?;
    let key = object.key.strip_prefix(PREFIX).filter(|key| key.starts_with(KEY_PREFIX))?;
    let parsed: serde_json::Value = serde_json::from_slice(&object.value).ok()?;
    let value = parsed["data"]["v"].as_str().unwrap_or_default().to_owned();
    let change = if now.is_some() { Change::Put { value } } else { Change::Deleted { value } };
    Some(Event { revision, key: key.to_owned(), change })
}

async fn follow_leadership(
    observer: Observer,
    index: usize,
    mut leadership: tokio::sync::watch::Receiver<consensus::Leadership>,
) {
    loop {
        let now = *leadership.borrow_and_update();
        if now.leading {
            observer.leads(index, now.term);
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn follow_store(observer: Observer, index: usize, mut watch: storage::Watch) {
    // A master that installed a snapshot lags: what it skipped, others have applied.
    while let Ok(item) = watch.next().await {
        if let WatchItem::Event(WatchEvent { revision, object, previous }) = item {
            observer.applied(index, revision, object.as_deref(), previous.as_deref());
        }
    }
}
