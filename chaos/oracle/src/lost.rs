//! Checks that no acknowledged write is lost or applied twice: durability and exactly-once, the "lost write"
//! and "duplicate" of Jepsen's etcd analysis (<https://jepsen.io/analyses/etcd-3.4.3>). Called by `check`.
//!
//! An acknowledged create or update must be in the truth at its revision with its key and value. An
//! acknowledged delete must have a deletion of its own there: at its revision or, if the answer had none, at
//! one that real time allows. The value of a write is unique, so a value put twice is a write applied twice.

use std::collections::BTreeMap;

use super::index::{Index, violation};
use super::{Violation, matching};
use crate::history::{Change, Event, History, Operation, Outcome};

/// Name of this check in reports.
pub const CHECK: &str = "lost";

/// Returns the writes that are lost or applied twice.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let mut found = writes(history, &index);
    found.extend(deletes(history, &index));
    found.extend(twice(history, &index));
    found
}

fn writes(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let Outcome::Written { revision } = operation.outcome else { continue };
        let (Some(key), Some(value)) = (operation.call.key(), operation.call.value()) else { continue };
        let here = index.at(revision);
        if here.is_some_and(|event| event.key == key && event.change.after() == Some(value)) {
            continue;
        }
        let there = here.map_or_else(|| "nothing".to_owned(), Event::to_string);
        let elsewhere =
            index.put(value).map_or_else(String::new, |event| format!("; its value is the {event}"));
        let name = index.name(number);
        found.push(violation(CHECK, format!("{name} is not in the truth, where {there} is{elsewhere}")));
    }
    found
}

fn deletes(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let acknowledged: Vec<(usize, &Operation)> = matching::deletes(history)
        .into_iter()
        .filter(|(_, delete)| matches!(delete.outcome, Outcome::Deleted { .. }))
        .collect();
    let deletions = matching::deletions(history);
    let allowed: Vec<Vec<usize>> = acknowledged
        .iter()
        .map(|(_, delete)| {
            let made = |event: &usize| matching::made(index, delete, deletions[*event]);
            (0..deletions.len()).filter(made).collect()
        })
        .collect();
    let without = matching::unmatched(&allowed, deletions.len());
    without
        .into_iter()
        .map(|left| {
            let name = index.name(acknowledged[left].0);
            let why = match allowed[left].as_slice() {
                [] => "no deletion in the truth can be its own".to_owned(),
                some => {
                    let events: Vec<_> = some.iter().map(|&event| deletions[event].to_string()).collect();
                    format!("what it can have deleted is taken by other deletes: {}", events.join(", "))
                }
            };
            violation(CHECK, format!("{name} is lost: {why}"))
        })
        .collect()
}

fn twice(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let mut puts: BTreeMap<&str, &Event> = BTreeMap::new();
    let mut found = Vec::new();
    for event in &history.truth.events {
        let Change::Put { value } = &event.change else { continue };
        if let Some(first) = puts.insert(value, event) {
            let whose = index.writer(value).map_or("nobody".to_owned(), |(number, _)| index.name(number));
            found.push(violation(CHECK, format!("{whose} is applied twice: {first} and again {event}")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected};
    use super::*;

    #[test]
    fn acknowledged_and_unknown_writes_that_are_there_pass() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.unknown_update(1, "a", ("a1", 1), "a2", 3).put("a", "a2", 2);
        run.unknown_create(2, "b", "b1", 3);
        run.delete(0, "a", None, (5, 6), Some(3)).deleted("a", "a2", 3);
        run.create(0, "a", "a3", (7, 8), 4).put("a", "a3", 4);
        run.delete(0, "a", Some(("a3", 4)), (9, 10), None).deleted("a", "a3", 5);
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_write_that_is_missing() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1);
        rejected(&check(&run.history), "operation 0", "not in the truth, where nothing is");
    }

    #[test]
    fn a_write_at_another_revision_or_under_another_key() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 2);
        rejected(&check(&run.history), "operation 0", "its value is the put a \"a1\"@2");
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("b", "a1", 1);
        rejected(&check(&run.history), "operation 0", "where put b \"a1\"@1 is");
    }

    #[test]
    fn a_write_replaced_by_another() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).create(1, "a", "x1", (1, 2), 1).put("a", "x1", 1);
        rejected(&check(&run.history), "operation 0", "where put a \"x1\"@1 is");
    }

    #[test]
    fn a_write_applied_twice() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 9), 1).put("a", "a1", 1).deleted("a", "a1", 2).put("a", "a1", 3);
        rejected(&check(&run.history), "operation 0", "applied twice");
    }

    #[test]
    fn a_delete_that_is_missing_or_elsewhere() {
        let mut run = Run::default();
        run.put("a", "a1", 1).delete(0, "a", None, (3, 4), None);
        rejected(&check(&run.history), "operation 0", "no deletion in the truth");
        run.deleted("a", "a1", 2);
        assert_eq!(check(&run.history), []);
        run.history.operations[0].outcome = Outcome::Deleted { revision: Some(3) };
        rejected(&check(&run.history), "operation 0", "no deletion in the truth");
    }

    #[test]
    fn a_delete_of_another_version() {
        let mut run = Run::default();
        run.put("a", "a1", 1).put("a", "a2", 2).deleted("a", "a2", 3).delete(
            0,
            "a",
            Some(("a1", 1)),
            (3, 4),
            None,
        );
        rejected(&check(&run.history), "operation 0", "no deletion in the truth");
    }

    #[test]
    fn a_delete_of_another_key() {
        let mut run = Run::default();
        run.put("a", "a1", 1).put("b", "b1", 2).deleted("b", "b1", 3).delete(0, "a", None, (3, 4), None);
        rejected(&check(&run.history), "operation 0", "no deletion in the truth");
    }

    #[test]
    fn two_deletes_that_share_one_deletion() {
        let mut run = Run::default();
        run.put("a", "a1", 1).deleted("a", "a1", 2);
        run.delete(0, "a", None, (3, 4), Some(2)).delete(1, "a", None, (3, 4), None);
        rejected(&check(&run.history), "operation 1", "taken by other deletes");
    }

    #[test]
    fn a_delete_whose_deletion_real_time_forbids() {
        let mut early = Run::default();
        early.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1).deleted("a", "a1", 2);
        early.create(0, "b", "b1", (3, 4), 3).put("b", "b1", 3).delete(0, "a", None, (5, 6), None);
        rejected(&check(&early.history), "operation 2", "no deletion in the truth");
        let mut listed = Run::default();
        listed.put("a", "a1", 1).deleted("a", "a1", 2).list(0, 2, &[], (1, 2)).delete(
            0,
            "a",
            None,
            (3, 4),
            None,
        );
        rejected(&check(&listed.history), "operation 1", "no deletion in the truth");
        let mut late = Run::default();
        late.put("a", "a1", 1).delete(0, "a", None, (1, 2), None);
        late.create(0, "b", "b1", (3, 4), 2).put("b", "b1", 2).deleted("a", "a1", 3);
        rejected(&check(&late.history), "operation 0", "no deletion in the truth");
    }
}
