//! What the child processes reported, and what the next child may therefore find.

use std::collections::{BTreeMap, BTreeSet};

use crate::value::{KEYS, is_deletion};

/// What is known of all keys and of the vote.
#[derive(Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<u64, Known>,
    vote: Known,
    /// First version that no child has started yet.
    pub next_version: u64,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
}

#[derive(Debug, Default)]
struct Known {
    /// Last version that was acknowledged or found.
    certain: u64,
    /// Versions started after the last certain one, which may or may not survive.
    possible: BTreeSet<u64>,
}

/// What a child found after its start.
#[derive(Debug, Default)]
pub struct Found {
    /// Version found for each key.
    pub keys: BTreeMap<u64, u64>,
    /// The vote found; 0 if there is none.
    pub vote: u64,
}

// === impl Known ===

impl Known {
    fn acknowledge(&mut self, version: u64) {
        self.certain = self.certain.max(version);
        self.possible = self.possible.split_off(&(self.certain + 1));
    }

    /// Returns the versions that may be found, newest last.
    fn allowed(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        [self.certain].into_iter().chain(self.possible.iter().copied())
    }
}

// === impl Ledger ===

impl Ledger {
    /// Records that a version was handed to the store.
    pub fn started(&mut self, key: u64, version: u64) {
        self.keys.entry(key).or_default().possible.insert(version);
        self.next_version = self.next_version.max(version + 1);
    }

    /// Records that a version was acknowledged.
    pub fn acknowledged(&mut self, key: u64, version: u64) {
        self.acknowledged += 1;
        self.keys.entry(key).or_default().acknowledge(version);
    }

    /// Records that a vote is being saved.
    pub fn vote_started(&mut self, vote: u64) {
        self.vote.possible.insert(vote);
        self.next_version = self.next_version.max(vote + 1);
    }

    /// Records that a vote was saved.
    pub fn vote_saved(&mut self, vote: u64) {
        self.vote.acknowledge(vote);
    }

    /// Checks what a child found, and returns a message for each error. What was found counts as certain from
    /// now on: it has been read, so it must not vanish.
    pub fn check(&mut self, found: &Found) -> Vec<String> {
        let mut wrong = Vec::new();
        for key in 0..KEYS {
            let known = self.keys.entry(key).or_default();
            let version = found.keys.get(&key).copied();
            let fits = |allowed: &u64| match version {
                Some(version) => *allowed == version && !is_deletion(version),
                None => *allowed == 0 || is_deletion(*allowed),
            };
            let fitting = known.allowed().find(fits);
            match fitting {
                Some(version) => {
                    known.certain = version;
                    known.possible.clear();
                }
                None => wrong.push(format!(
                    "key {key}: found {version:?}, but {} was acknowledged and only {:?} begun after it",
                    known.certain, known.possible
                )),
            }
        }
        if !self.vote.allowed().any(|vote| vote == found.vote) {
            wrong.push(format!("vote: found {}, saved was {}", found.vote, self.vote.certain));
        }
        self.vote = Known { certain: found.vote, possible: BTreeSet::new() };
        wrong.extend(
            found.keys.keys().filter(|key| **key >= KEYS).map(|key| format!("key {key} is nobody's")),
        );
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(keys: &[(u64, u64)]) -> Found {
        Found { keys: keys.iter().copied().collect(), vote: 0 }
    }

    #[test]
    fn what_was_acknowledged_or_seen_must_be_there_and_nothing_that_was_not_begun() {
        let mut ledger = Ledger::default();
        ledger.started(1, 10);
        assert_eq!(ledger.check(&found(&[])).len(), 0, "not acknowledged");
        ledger.started(1, 11);
        ledger.acknowledged(1, 11);
        ledger.started(1, 12);
        assert_eq!(ledger.check(&found(&[])).len(), 1, "lost");
        assert_eq!(ledger.check(&found(&[(1, 10)])).len(), 1, "rewound");
        assert_eq!(ledger.check(&found(&[(1, 13)])).len(), 1, "a phantom");
        assert_eq!(ledger.check(&found(&[(1, 12)])).len(), 0);
        assert_eq!(ledger.check(&found(&[(1, 11)])).len(), 1, "12 was seen already");
        ledger.started(1, 17);
        ledger.acknowledged(1, 17);
        assert_eq!(ledger.check(&found(&[])).len(), 0, "17 is a deletion");
        assert_eq!(ledger.check(&found(&[(1, 12)])).len(), 1, "deleted");
    }
}
