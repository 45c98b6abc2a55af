//! Matches deletes with deletions. An event does not say which delete caused it, so `lost.rs` checks whether
//! every acknowledged delete can have a deletion of its own, and `phantom.rs` whether every deletion can have
//! a delete of its own. Both are bipartite matchings; by the theorem of Mendelsohn and Dulmage (1958) one
//! matching can satisfy both, so each may be checked alone.

use super::index::{Index, may_delete};
use crate::history::{Call, Change, Event, History, Operation, Outcome};

/// Assigns to each of `left` one of the `right` that it allows (by index), none twice, by augmenting paths
/// (Kuhn 1955). Returns the indexes of `left` that get none.
pub(super) fn unmatched(allowed: &[Vec<usize>], right: usize) -> Vec<usize> {
    let mut owner = vec![None; right];
    let mut without = Vec::new();
    for left in 0..allowed.len() {
        let mut tried = vec![false; right];
        if !augment(left, allowed, &mut owner, &mut tried) {
            without.push(left);
        }
    }
    without
}

fn augment(left: usize, allowed: &[Vec<usize>], owner: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    for &right in &allowed[left] {
        if std::mem::replace(&mut tried[right], true) {
            continue;
        }
        let free = owner[right].is_none_or(|other| augment(other, allowed, owner, tried));
        if free {
            owner[right] = Some(left);
            return true;
        }
    }
    false
}

/// Returns the deletes that may have taken effect, with their indexes.
pub(super) fn deletes(history: &History) -> Vec<(usize, &Operation)> {
    history.operations.iter().enumerate().filter(|(_, o)| may_delete(o)).collect()
}

/// Returns the deletions of the truth.
pub(super) fn deletions(history: &History) -> Vec<&Event> {
    history.truth.events.iter().filter(|e| matches!(e.change, Change::Deleted { .. })).collect()
}

/// Returns whether a delete can have caused a deletion: key, precondition, revision if it is known, and real
/// time agree.
pub(super) fn made(index: &Index<'_>, delete: &Operation, deletion: &Event) -> bool {
    let Call::Delete { key, expected } = &delete.call else { return false };
    if *key != deletion.key || expected.as_ref().is_some_and(|e| e.value != deletion.change.value()) {
        return false;
    }
    if index.floor(delete.called).is_some_and(|(floor, _)| deletion.revision <= floor) {
        return false;
    }
    match delete.outcome {
        Outcome::Deleted { revision: Some(revision) } => revision == deletion.revision,
        Outcome::Deleted { revision: None } => {
            index.ceiling(delete.returned).is_none_or(|(ceiling, _)| deletion.revision <= ceiling)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matching_moves_those_that_can_give_way() {
        assert_eq!(unmatched(&[vec![0, 1], vec![0]], 2), [0; 0]);
        assert_eq!(unmatched(&[vec![0, 1], vec![0], vec![1, 2], vec![2]], 3), [3]);
        assert_eq!(unmatched(&[vec![], vec![0]], 1), [0]);
    }
}
