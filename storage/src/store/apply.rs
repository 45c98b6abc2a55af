//! Applies committed entries: synchronously, and without clock, randomness or any I/O but the backend's, so
//! that every replica reaches the same state.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError};

use super::{CHECKPOINTS, Live, Store, lock, records};
use proto_env::planted::{self, Bug};
use serde::{Deserialize, Serialize};

use crate::backend::Batch;
use crate::recent_outcomes::Outcomes;
use crate::txn::{Command, Mutation, Precondition, Txn, TxnOutcome};
use crate::watch::WatchEvent;
use crate::{Object, Result, Revision};

/// The commands of one committed log entry.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The entry's log index.
    pub index: u64,
    /// The term of the leader that appended the entry.
    pub term: u64,
    /// The commands in the entry; empty for entries of the consensus itself.
    pub commands: Vec<Command>,
    /// Number by which revisions are raised; the history before the entry is dropped, so watches end and
    /// clients have to list again. 0: revisions are not raised.
    pub raise: Revision,
}

/// The result of applying a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// The command's outcome; for a resent command that of its first application.
    Outcome(TxnOutcome),
    /// The command was not applied: it is so old that an outcome of an earlier application may have been
    /// forgotten.
    Forgotten,
}

/// The changes of a few entries: the events, and the records that the backend has to write.
#[derive(Default)]
struct Changes {
    events: Vec<WatchEvent>,
    /// The keys of objects that were changed or removed, by the revisions that created them.
    objects: BTreeMap<Revision, Arc<str>>,
    recorded: Vec<(u64, Outcomes)>,
    forgotten: Vec<(u64, Outcomes)>,
    raised: bool,
}

impl Store {
    /// Applies entries in log order and stores `applied` beside them in one atomic batch, so that after a
    /// crash the state is the one at the stored `applied`. Returns the outcomes of each entry. After an
    /// error the node must stop.
    pub fn apply(&self, entries: Vec<Entry>, applied: Vec<u8>) -> Result<Vec<Vec<Applied>>> {
        let mut backend = lock(&self.backend);
        let mut changes = Changes::default();
        let mut batch = Batch::default();
        let (results, revision) = {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            let results = entries.into_iter().map(|entry| live.apply_entry(entry, &mut changes));
            let results = results.collect::<Result<Vec<_>>>()?;
            live.applied = applied;
            live.write_changes(&changes, &mut batch)?;
            // Published while `live` is locked, so that a reader of both sees them at one revision.
            let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
            history.publish(changes.events, live.revision);
            if changes.raised {
                history.reset(live.revision);
            }
            (results, live.revision)
        };
        backend.write(batch)?;
        self.reached.send_if_modified(|reached| std::mem::replace(reached, revision) != revision);
        Ok(results)
    }
}

// === impl Live ===

impl Live {
    fn apply_entry(&mut self, mut entry: Entry, changes: &mut Changes) -> Result<Vec<Applied>> {
        let mut outcomes = Outcomes::new();
        self.revision += entry.raise;
        changes.raised |= entry.raise != 0;
        // Planted: the order of commands is that of a hash table, another one on every master.
        let unordered = planted::is(Bug::ApplyInHashOrder) && RandomState::new().hash_one(0) % 2 == 1;
        if unordered {
            entry.commands.reverse();
        }
        let mut results: Vec<Applied> = entry
            .commands
            .into_iter()
            .map(|command| self.apply_command(command, entry.term, changes, &mut outcomes))
            .collect();
        if unordered {
            results.reverse();
        }
        let ids = outcomes.iter().map(|(id, _)| *id).collect();
        let forgotten = self.recent.close(entry.index, ids);
        for (index, outcomes) in &forgotten {
            self.fingerprint.remove_outcomes(*index, outcomes)?;
        }
        changes.forgotten.extend(forgotten);
        if !outcomes.is_empty() {
            self.fingerprint.add_outcomes(entry.index, &outcomes)?;
            changes.recorded.push((entry.index, outcomes));
        }
        self.index = entry.index;
        if self.checkpoints.len() == CHECKPOINTS {
            self.checkpoints.pop_front();
        }
        self.checkpoints.push_back(self.checkpoint());
        Ok(results)
    }

    fn apply_command(
        &mut self,
        command: Command,
        term: u64,
        changes: &mut Changes,
        outcomes: &mut Outcomes,
    ) -> Applied {
        // Planted: a resent command is applied again.
        if !planted::is(Bug::ResendAppliedTwice)
            && let Some(first) = self.recent.get(&command.id)
        {
            return Applied::Outcome(first.clone());
        }
        if command.born < self.recent.forgotten() {
            return Applied::Forgotten;
        }
        let outcome = match command.fence {
            // Planted: a deposed leader's components write on.
            Some(fence) if term > fence && !planted::is(Bug::FenceIgnored) => TxnOutcome::Fenced { term },
            _ => self.apply_txn(command.txn, changes),
        };
        self.recent.insert(command.id, outcome.clone());
        outcomes.push((command.id, outcome.clone()));
        Applied::Outcome(outcome)
    }

    fn apply_txn(&mut self, txn: Txn, changes: &mut Changes) -> TxnOutcome {
        for (position, precondition) in txn.preconditions.iter().enumerate() {
            let current = self.objects.get(precondition.key()).map(|object| object.mod_revision);
            // Planted: only the first one counts.
            let counts = position == 0 || !planted::is(Bug::TransactionHalfChecked);
            if counts && !precondition.holds(current) && !unchecked(precondition, &txn.mutations) {
                return TxnOutcome::Failed { precondition: position, current, at: self.revision };
            }
        }
        // Planted: every fourth transaction is cut off after its first mutation.
        let torn = planted::is(Bug::TransactionTorn) && self.revision.is_multiple_of(4);
        let applied = if torn { 1 } else { usize::MAX };
        let mutations = txn.mutations.into_iter().take(applied);
        let revisions = mutations.map(|mutation| self.mutate(mutation, changes)).collect();
        TxnOutcome::Committed { revisions }
    }

    fn mutate(&mut self, mutation: Mutation, changes: &mut Changes) -> Revision {
        self.revision += 1;
        let revision = self.revision;
        match mutation {
            Mutation::Put { key, value } => {
                let previous = self.objects.get(key.as_str()).cloned();
                let create_revision = previous.as_ref().map_or(revision, |object| object.create_revision);
                let key: Arc<str> = match &previous {
                    Some(object) => object.key.clone(),
                    None => key.into(),
                };
                let object = Arc::new(Object::new(key.clone(), value, create_revision, revision));
                if let Some(previous) = &previous {
                    self.forget(previous);
                }
                self.fingerprint.add_object(&object);
                self.object_bytes += object.size_bytes() as u64;
                self.objects.insert(key.clone(), object.clone());
                changes.objects.insert(create_revision, key);
                changes.events.push(WatchEvent { revision, object: Some(object.clone()), previous });
                // Planted: answered and announced, and kept nowhere.
                if planted::is(Bug::WriteVanishes)
                    && object.key.contains("/reg-")
                    && revision.is_multiple_of(16)
                {
                    self.objects.remove_entry(&object.key);
                    self.forget(&object);
                }
            }
            Mutation::Delete { key } => {
                if let Some((key, previous)) = self.objects.remove_entry(key.as_str()) {
                    self.forget(&previous);
                    changes.objects.insert(previous.create_revision, key);
                    // Planted: nobody is told of a deletion.
                    if !planted::is(Bug::DeleteWithoutEvent) {
                        changes.events.push(WatchEvent { revision, object: None, previous: Some(previous) });
                    }
                }
            }
        }
        revision
    }

    fn forget(&mut self, previous: &Object) {
        self.fingerprint.remove_object(previous);
        self.object_bytes = self.object_bytes.saturating_sub(previous.size_bytes() as u64);
    }

    /// Adds to `batch` the records that `changes` affect.
    fn write_changes(&self, changes: &Changes, batch: &mut Batch) -> Result<()> {
        for (created, key) in &changes.objects {
            // The key may belong to a newer object by now.
            match self.objects.get(key).filter(|object| object.create_revision == *created) {
                Some(object) => records::put_object(batch, object)?,
                None => records::delete_object(batch, *created),
            }
        }
        for (index, outcomes) in &changes.recorded {
            records::put_recent(batch, *index, outcomes)?;
        }
        for (index, _) in &changes.forgotten {
            records::delete_recent(batch, *index);
        }
        records::put_state(batch, &self.state())
    }
}

/// Planted: whether what was asked before the log is good enough, or deletions need not ask.
#[inline(always)]
fn unchecked(precondition: &Precondition, mutations: &[Mutation]) -> bool {
    planted::is(Bug::CheckBeforeLog) && matches!(precondition, Precondition::AtRevision { .. })
        || planted::is(Bug::DeleteUnchecked) && matches!(mutations, [Mutation::Delete { .. }, ..])
}
