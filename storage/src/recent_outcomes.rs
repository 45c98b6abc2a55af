//! Outcomes of recent proposals, so that a resent proposal gets its first outcome. Replicated like the
//! objects: filled only by apply, limited in number, part of snapshots.

use std::collections::{BTreeMap, VecDeque};

use crate::txn::{ProposalId, TxnOutcome};

/// Maximum number of remembered proposals. At 5,000 writes a second that is 13 seconds, longer than any
/// internal resend goes on.
const REMEMBERED_MAX: usize = 65_536;

/// One log entry's proposals with their outcomes.
pub(crate) type Outcomes = Vec<(ProposalId, TxnOutcome)>;

#[derive(Default)]
pub(crate) struct RecentOutcomes {
    by_id: BTreeMap<ProposalId, TxnOutcome>,
    by_index: VecDeque<(u64, Vec<ProposalId>)>,
    /// Outcomes in log entries up to this index may be forgotten.
    forgotten: u64,
}

impl RecentOutcomes {
    pub(crate) fn with_forgotten(forgotten: u64) -> Self {
        Self { forgotten, ..Self::default() }
    }

    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(crate) fn get(&self, id: &ProposalId) -> Option<&TxnOutcome> {
        self.by_id.get(id)
    }

    pub(crate) fn insert(&mut self, id: ProposalId, outcome: TxnOutcome) {
        self.by_id.insert(id, outcome);
    }

    /// Ends the log entry at `index`, whose proposals were inserted; returns the entries forgotten to make
    /// room.
    pub(crate) fn close(&mut self, index: u64, ids: Vec<ProposalId>) -> Vec<(u64, Outcomes)> {
        if !ids.is_empty() {
            self.by_index.push_back((index, ids));
        }
        let mut forgotten = Vec::new();
        while self.by_id.len() > REMEMBERED_MAX {
            let Some((index, ids)) = self.by_index.pop_front() else { break };
            let outcomes = ids.into_iter().filter_map(|id| Some((id, self.by_id.remove(&id)?)));
            forgotten.push((index, outcomes.collect()));
            self.forgotten = index;
        }
        forgotten
    }

    /// Restores a stored record; records come in the order of their log indexes.
    pub(crate) fn restore(&mut self, index: u64, outcomes: Outcomes) {
        self.by_index.push_back((index, outcomes.iter().map(|(id, _)| *id).collect()));
        self.by_id.extend(outcomes);
    }

    /// Returns all remembered outcomes, by log entry.
    pub(crate) fn records(&self) -> Vec<(u64, Outcomes)> {
        self.records_from(0, usize::MAX)
    }

    /// Returns the remembered outcomes from the log entry at `from` on, of at most `max` entries.
    pub(crate) fn records_from(&self, from: u64, max: usize) -> Vec<(u64, Outcomes)> {
        let outcome = |id: &ProposalId| Some((*id, self.by_id.get(id)?.clone()));
        let start = self.by_index.partition_point(|(index, _)| *index < from);
        let records = self.by_index.range(start..).take(max);
        records.map(|(index, ids)| (*index, ids.iter().filter_map(outcome).collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ProposalId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id
    }

    #[test]
    fn the_oldest_entries_are_forgotten_first_and_that_is_remembered() {
        let mut recent = RecentOutcomes::default();
        for number in 0..=REMEMBERED_MAX {
            recent.insert(id(number), TxnOutcome::Fenced { term: 1 });
            let forgotten = recent.close(number as u64 + 1, vec![id(number)]);
            let first = vec![(1, vec![(id(0), TxnOutcome::Fenced { term: 1 })])];
            assert_eq!(forgotten, if number == REMEMBERED_MAX { first } else { vec![] });
        }
        assert!(recent.get(&id(0)).is_none());
        assert!(recent.get(&id(1)).is_some());
        assert_eq!(recent.forgotten(), 1);
    }
}
