//! Checks that acknowledged writes are in the final state of every replica. `lost.rs` checks whether a write
//! was ever applied; this file checks whether it is still there after the last write. It finds a write that
//! vanished from all replicas even if no client ever read its key again. Called by `check`.
//!
//! This check does not use the truth: for each key the final state must have the acknowledged write of the
//! highest revision, or something newer, or the effect of a delete that can have come after it was called.
//! The final states are lists in the history (`History::finals`), so `lists.rs`, `order.rs` and
//! `linearizable.rs` judge them as well, against the truth.

use std::collections::BTreeMap;

use super::Violation;
use super::index::{Index, may_delete, violation};
use crate::history::{History, Operation, Outcome, Versioned};
use crate::kind::Kind;

/// Name of this check in reports.
pub const CHECK: &str = "final state";

/// Returns a violation for each acknowledged write that the final state of some replica lacks.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let newest = newest(history);
    let mut found = Vec::new();
    for &number in &history.finals {
        let last = history.operations.get(number);
        let kind = last.map_or(Kind::default(), |last| last.call.kind());
        let Some(Outcome::Listed { revision, objects }) = last.map(|last| &last.outcome) else {
            found.push(violation(CHECK, format!("operation {number} read no final state")));
            continue;
        };
        for (key, (writer, at)) in newest.iter().filter(|(key, _)| Kind::of(key) == kind) {
            let there = objects.get(*key);
            if let Some(why) = missing(history, (*writer, *at), there) {
                let (name, last) = (index.name(*writer), index.name(number));
                found.push(violation(
                    CHECK,
                    format!("{name} is not in the final state at {revision}, {last}: {why}"),
                ));
            }
        }
    }
    found
}

/// Returns for each key the acknowledged write of the highest revision: its index and that revision.
fn newest(history: &History) -> BTreeMap<&str, (usize, u64)> {
    let mut newest: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let (Some(key), Outcome::Written { revision }) = (operation.call.key(), &operation.outcome) else {
            continue;
        };
        let entry = newest.entry(key).or_insert((number, *revision));
        if *revision > entry.1 {
            *entry = (number, *revision);
        }
    }
    newest
}

/// Returns why a replica's value of a key cannot be the result of this write; `None` if it can.
fn missing(history: &History, (writer, at): (usize, u64), there: Option<&Versioned>) -> Option<String> {
    let write = &history.operations[writer];
    match there {
        Some(found) if found.revision > at => None,
        Some(found) if found.revision == at && write.call.value() == Some(found.value.as_str()) => None,
        Some(found) => Some(format!("there is {found}")),
        None if history.operations.iter().any(|operation| may_follow(operation, write)) => None,
        None => Some("there is nothing, and no delete can have come after it".to_owned()),
    }
}

/// Returns whether an operation can have deleted what this write wrote.
fn may_follow(operation: &Operation, write: &Operation) -> bool {
    let unanswered = matches!(operation.outcome, Outcome::Unknown);
    may_delete(operation)
        && operation.call.key() == write.call.key()
        && (unanswered || operation.returned > write.called)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected};
    use super::*;

    /// Ends a run with a replica's final list.
    fn ended(mut run: Run, revision: u64, found: &[(&str, &str, u64)]) -> Vec<Violation> {
        run.list(99, revision, found, (1000, 1001));
        run.history.finals = vec![run.history.operations.len() - 1];
        check(&run.history)
    }

    fn run() -> Run {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).update(0, "a", ("a1", 1), "a2", (3, 4), 5);
        run.create(1, "b", "b1", (5, 6), 6);
        run
    }

    #[test]
    fn what_was_acknowledged_and_is_there_passes() {
        assert_eq!(ended(run(), 9, &[("a", "a2", 5), ("b", "b1", 6)]), []);
        // A write with an unknown outcome may have come after it, and so may a delete.
        assert_eq!(ended(run(), 9, &[("a", "a3", 8), ("b", "b1", 6)]), []);
        let mut deleted = run();
        deleted.delete(2, "a", None, (7, 8), None).unknown_delete(3, "b", 9);
        assert_eq!(ended(deleted, 9, &[]), []);
    }

    #[test]
    fn a_write_that_has_vanished_from_the_replica_is_found_without_the_truth() {
        let found = ended(run(), 9, &[("a", "a2", 5)]);
        rejected(&found, "operation 2", "there is nothing, and no delete can have come after it");
        let mut early = Run::default();
        early.delete(2, "a", None, (1, 2), None).create(0, "a", "a1", (3, 4), 4);
        rejected(&ended(early, 9, &[]), "operation 1", "there is nothing");
    }

    #[test]
    fn an_older_or_another_value_is_found() {
        rejected(&ended(run(), 9, &[("a", "a1", 1), ("b", "b1", 6)]), "operation 1", "there is \"a1\"@1");
        rejected(&ended(run(), 9, &[("a", "a2", 5), ("b", "x", 6)]), "operation 2", "there is \"x\"@6");
    }

    #[test]
    fn a_final_state_that_was_not_read_is_told() {
        let mut run = run();
        run.history.finals = vec![0];
        rejected(&check(&run.history), "operation 0", "read no final state");
    }
}
