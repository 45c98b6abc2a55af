//! Records what happens in a run: clients' operations, changes that every replica applied, leaders of each
//! term. Machines attach their masters, clients report their operations, the run takes the history in the
//! end. Also checks the invariants that hold at every moment: one leader a term (Raft, Ongaro and Ousterhout
//! 2014, "Election Safety") and the same change at the same revision on every replica ("State Machine
//! Safety").

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use chaos_spec::NodeName;
use consensus::{Consensus, Member, NodeId, VoteSeen};
use storage::{Object, Store, WatchClosed, WatchEvent, WatchItem};

use crate::checks::{fence, ids, minority, votes};
use crate::machine;
use crate::seams::clock;
use crate::workload::NAMESPACE;
use chaos_oracle::Violation;
use chaos_oracle::calls::KEY_PREFIX;
use chaos_oracle::history::{
    Call, Change, Closing, Event, History, Operation, Outcome, Stamps, Truth, Versioned, Watched,
};
use chaos_oracle::kind::Kind;

/// First client number for final reads: the final state of master `mN` is read as client `FINAL` + N.
const FINAL: usize = 20_000;

#[derive(Default)]
struct Seen {
    stamps: Stamps,
    operations: Vec<Operation>,
    acknowledged: usize,
    watches: BTreeMap<usize, Arc<Mutex<Watched>>>,
    /// Indexes of the operations that read the final state of a replica.
    finals: Vec<usize>,
    closing: Option<Closing>,
    truth: BTreeMap<u64, Event>,
    /// First leader seen in each term, and when.
    leaders: BTreeMap<u64, (Duration, NodeName)>,
    violations: Vec<Violation>,
    masters: BTreeMap<NodeName, Weak<Consensus>>,
    ids: BTreeMap<NodeName, NodeId>,
    given: ids::Ids,
    votes: votes::Votes,
    /// Entries that leaders wrote into their journal, by revision.
    journal: BTreeMap<u64, fence::Written>,
    minority: minority::Minority,
}

/// Collects what is seen of the run; clones share the data.
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

    /// Returns the stamp of this moment in the history.
    pub fn stamp(&self) -> u64 {
        let now = u64::try_from(clock::elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.lock().stamps.next(now)
    }

    /// Records a client's operation that has ended; `asked` is the machine it was sent to.
    pub fn operation(&self, operation: Operation, asked: IpAddr) {
        tracing::info!(target: "client", %operation, "operation");
        let mut seen = self.lock();
        // A list of any version may be answered without a majority.
        let answered =
            !matches!(operation.outcome, Outcome::NotEntered | Outcome::Unknown | Outcome::Shown { .. });
        if let Some(by) = machine::master_at(asked).filter(|_| answered)
            && let Some(what) = seen.minority.acknowledged(by, operation.called)
        {
            seen.violations.push(violation(minority::CHECK, format!("{what} {operation}")));
        }
        seen.acknowledged += usize::from(matches!(operation.outcome, Outcome::Written { .. }));
        seen.operations.push(operation);
    }

    /// Registers what client `client` sees in its watches; the client adds to it until the end of the run.
    pub fn watches(&self, client: usize, watched: &Arc<Mutex<Watched>>) {
        self.lock().watches.insert(client, watched.clone());
    }

    /// Sets the revision that every watch must reach from now on.
    pub fn close(&self, revision: u64) {
        let mut seen = self.lock();
        seen.closing = Some(Closing { revision, clients: seen.watches.keys().copied().collect() });
    }

    /// Returns whether every watch has reached the revision set by [`Observer::close`].
    pub fn is_closed(&self) -> bool {
        let seen = self.lock();
        let closing = seen.closing.as_ref().map_or(0, |closing| closing.revision);
        seen.watches.values().all(|watched| {
            let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.streams.last().is_some_and(|stream| stream.reached >= closing)
        })
    }

    /// Reads the replica of each of these nodes and adds it to the history as lists by a client of its own.
    pub fn read_finals(&self, nodes: &[NodeName]) {
        for (node, master) in self.masters().into_iter().filter(|(node, _)| nodes.contains(node)) {
            Kind::ALL.iter().for_each(|kind| self.read_final(node, &master, *kind));
        }
    }

    fn read_final(&self, node: NodeName, master: &Consensus, kind: Kind) {
        let called = self.stamp();
        let page = match master.store().range(&kind.store_prefix(NAMESPACE), None, 0, None) {
            Ok(page) => page,
            Err(error) => return self.violation("observer", format!("{node}: {error:?}")),
        };
        let events =
            page.objects.iter().filter_map(|object| event_of(kind, object.mod_revision, Some(object), None));
        let objects = events.map(|event| {
            let version = Versioned { revision: event.revision, value: event.change.value().to_owned() };
            (event.key, version)
        });
        let outcome = Outcome::Listed { revision: page.revision, objects: objects.collect() };
        let (client, call) = (FINAL + node.number() as usize, Call::List { kind });
        let operation = Operation { client, call, called, returned: self.stamp(), outcome };
        tracing::info!(target: "chaos", %node, %operation, "final state");
        let mut seen = self.lock();
        let number = seen.operations.len();
        seen.finals.push(number);
        seen.operations.push(operation);
    }

    /// Records a violation of an invariant.
    pub fn violation(&self, check: &'static str, what: String) {
        let violation = violation(check, what);
        self.lock().violations.push(violation);
    }

    /// Sets which masters reach no majority from `now` on; machines report nothing between two ticks.
    pub fn isolated(&self, alone: &BTreeSet<NodeName>, now: Duration) {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.lock().minority.now(alone, now);
    }

    /// Returns the last vote of each running master.
    pub fn votes(&self) -> BTreeMap<NodeName, VoteSeen> {
        self.masters().into_iter().map(|(node, master)| (node, master.vote_seen())).collect()
    }

    /// Records the vote of a node whose process is about to be killed: it must be there at the next start.
    pub fn last_seen(&self, node: NodeName) {
        let master = self.lock().masters.get(&node).and_then(Weak::upgrade);
        if let Some(master) = master {
            self.lock().votes.seen(node, master.node_id(), master.vote_seen());
        }
    }

    /// Observes the master that starts on a node until it ends; `journal` is the pause between two journal
    /// entries.
    pub fn attach(&self, node: NodeName, consensus: &Arc<Consensus>, journal: Duration) {
        let given_before = self.lock().given.seen(node, consensus.node_id());
        given_before.into_iter().for_each(|what| self.violation(ids::CHECK, what));
        match consensus.vote_kept() {
            Ok(vote) => {
                let forgotten = self.lock().votes.started(node, consensus.node_id(), vote);
                forgotten.into_iter().for_each(|what| self.violation(votes::CHECK, what));
            }
            Err(error) => self.violation("observer", format!("{node}: {error}")),
        }
        match consensus.store().watch(fence::KEY, consensus.store().revision()) {
            Ok(watch) => drop(tokio::spawn(follow_journal(self.clone(), watch))),
            Err(error) => self.violation("observer", format!("{node}: {error}")),
        }
        tokio::spawn(fence::keep_journal(node, consensus.clone(), journal));
        self.lock().masters.insert(node, Arc::downgrade(consensus));
        self.lock().ids.insert(node, consensus.node_id());
        tokio::spawn(follow_leadership(self.clone(), node, consensus.leadership()));
        for kind in Kind::ALL {
            if let Some(watch) = self.look(node, *kind, consensus.store()) {
                let store = Arc::downgrade(consensus.store());
                tokio::spawn(follow_store(self.clone(), node, *kind, store, watch));
            }
        }
    }

    /// Records what a replica holds of a kind, and starts a watch from that revision.
    fn look(&self, node: NodeName, kind: Kind, store: &Store) -> Option<storage::Watch> {
        let (from, prefix) = (store.revision(), kind.store_prefix(NAMESPACE));
        if let Ok(page) = store.range(&prefix, None, 0, None) {
            for object in &page.objects {
                self.applied(node, event_of(kind, object.mod_revision, Some(object), None));
            }
        }
        let watch = store.watch(&prefix, from);
        watch.map_err(|error| self.violation("observer", format!("{node}: {error}"))).ok()
    }

    /// Returns the running masters.
    pub fn masters(&self) -> Vec<(NodeName, Arc<Consensus>)> {
        let seen = self.lock();
        let masters = seen.masters.iter();
        masters.filter_map(|(node, weak)| Some((*node, weak.upgrade()?))).collect()
    }

    /// Returns the master that considers itself leader; of several the one with the highest term.
    pub fn leader(&self) -> Option<NodeName> {
        let leading = self.masters().into_iter().filter_map(|(node, consensus)| {
            let now = *consensus.leadership().borrow();
            now.leading.then_some((now.term, node))
        });
        leading.max().map(|(_, node)| node)
    }

    /// Returns the number of acknowledged writes.
    pub fn acknowledged(&self) -> usize {
        self.lock().acknowledged
    }

    /// Returns the id that a node's master had when it was last seen.
    pub fn node_id(&self, node: NodeName) -> Option<NodeId> {
        self.lock().ids.get(&node).copied()
    }

    /// Returns the members as a node's master knows them.
    pub fn members_of(&self, node: NodeName) -> Vec<Member> {
        let master = self.lock().masters.get(&node).and_then(Weak::upgrade);
        master.map(|master| master.members()).unwrap_or_default()
    }

    /// Returns the leader of each term, and since when it led.
    pub fn leaders(&self) -> Vec<(Duration, u64, NodeName)> {
        self.lock().leaders.iter().map(|(term, (since, node))| (*since, *term, *node)).collect()
    }

    /// Takes the whole history, and the violations noticed during the run.
    pub fn take(&self) -> (History, Vec<Violation>) {
        let mut seen = self.lock();
        let history = History {
            operations: std::mem::take(&mut seen.operations),
            watches: std::mem::take(&mut seen.watches)
                .into_values()
                .map(|watched| watched.lock().unwrap_or_else(PoisonError::into_inner).clone())
                .collect(),
            truth: Truth { events: std::mem::take(&mut seen.truth).into_values().collect() },
            finals: std::mem::take(&mut seen.finals),
            closing: seen.closing.take(),
        };
        let journal = std::mem::take(&mut seen.journal);
        let mut violations = std::mem::take(&mut seen.violations);
        violations.extend(
            fence::check(journal.into_values()).into_iter().map(|what| violation(fence::CHECK, what)),
        );
        (history, violations)
    }

    fn leads(&self, node: NodeName, term: u64) {
        let mut seen = self.lock();
        let (_, other) = *seen.leaders.entry(term).or_insert((clock::elapsed(), node));
        if other != node {
            let what = format!("{other} and {node} both lead term {term}");
            seen.violations.push(violation("one-leader-per-term", what));
        }
    }

    /// Records a change that a replica applied; `None` is a change of an object that is not the clients'.
    fn applied(&self, node: NodeName, event: Option<Event>) {
        let Some(event) = event else { return };
        let mut seen = self.lock();
        let known = seen.truth.entry(event.revision).or_insert_with(|| event.clone());
        if *known != event {
            let what = format!("{node} applied {event}, another master {known}");
            seen.violations.push(violation("replicas-identical", what));
        }
    }
}

/// Converts a change to an event as clients see it; `None` for objects that are not the clients'.
fn event_of(kind: Kind, revision: u64, now: Option<&Object>, before: Option<&Object>) -> Option<Event> {
    let object = now.or(before)?;
    let name = object.key.strip_prefix(&kind.store_prefix(NAMESPACE))?;
    let parsed: serde_json::Value =
        serde_json::from_slice(&object.value).ok().filter(|_| name.starts_with(KEY_PREFIX))?;
    let value = kind.value(&parsed).unwrap_or_default().to_owned();
    let change = if now.is_some() { Change::Put { value } } else { Change::Deleted { value } };
    Some(Event { revision, key: kind.key(name), change })
}

async fn follow_leadership(
    observer: Observer,
    node: NodeName,
    mut leadership: tokio::sync::watch::Receiver<consensus::Leadership>,
) {
    loop {
        let now = *leadership.borrow_and_update();
        if now.leading {
            observer.leads(node, now.term);
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Records the journal entries that a replica applies. An entry that this replica applies late has already
/// been recorded from another replica.
async fn follow_journal(observer: Observer, mut watch: storage::Watch) {
    while let Ok(item) = watch.next().await {
        if let WatchItem::Event(WatchEvent { revision, object: Some(object), .. }) = item
            && let Some(written) = fence::decode(revision, &object.value)
        {
            observer.lock().journal.insert(revision, written);
        }
    }
}

async fn follow_store(
    observer: Observer,
    node: NodeName,
    kind: Kind,
    store: Weak<Store>,
    mut watch: storage::Watch,
) {
    loop {
        match watch.next().await {
            Ok(WatchItem::Event(WatchEvent { revision, object, previous })) => {
                let event = event_of(kind, revision, object.as_deref(), previous.as_deref());
                observer.applied(node, event);
            }
            Ok(WatchItem::Progress(_)) => {}
            // The replica has installed a snapshot: other replicas have applied what it skipped.
            Err(WatchClosed::Lagged) => {
                let Some(anew) = store.upgrade().and_then(|store| observer.look(node, kind, &store)) else {
                    return;
                };
                watch = anew;
            }
            Err(WatchClosed::Stopped) => return,
        }
    }
}
