//! Checks that revisions respect real time, and that each change fits the one before it: what strict
//! serializability (Papadimitriou 1979; Herlihy & Wing 1990, section 3.3;
//! <https://jepsen.io/consistency/models/strong-serializable>) requires of a store whose order of changes is
//! known, and what etcd promises of its revisions (<https://etcd.io/docs/v3.6/learning/api_guarantees/>).
//! Called by `check`.
//!
//! Because the truth has the order of all changes, no search is needed. Every answered operation is given the
//! lowest revision of the store at which it can have happened and that is not below that of any operation
//! which returned before it was called; if there is none, the operation is a violation. The lowest revision
//! is the best choice, since it constrains later operations least. This check spans keys, while
//! `linearizable.rs` looks at each key alone.

use std::collections::BTreeMap;

use super::Violation;
use super::index::{Index, violation};
use super::semantics::{Condition, Role, role};
use crate::history::{Call, Change, Event, History, Operation, Outcome};

/// Name of this check in reports.
pub const CHECK: &str = "order";

/// Returns where the truth contradicts itself or real time.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let mut found = increasing(history);
    // Operations cannot be placed if the truth has no consistent order of changes.
    if found.is_empty() {
        found.extend(fitting(history, &index));
        found.extend(real_time(history, &index));
    }
    found
}

fn increasing(history: &History) -> Vec<Violation> {
    let pairs = history.truth.events.windows(2).filter(|pair| pair[0].revision >= pair[1].revision);
    let zero = history.truth.events.first().filter(|event| event.revision == 0);
    let zero =
        zero.map(|event| violation(CHECK, format!("the truth has {event}, before the first revision")));
    zero.into_iter()
        .chain(pairs.map(|pair| violation(CHECK, format!("the truth has {} and then {}", pair[0], pair[1]))))
        .collect()
}

/// Checks that each change fits the one before it on its key.
fn fitting(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let mut last: BTreeMap<&str, &Event> = BTreeMap::new();
    let mut found = Vec::new();
    for event in &history.truth.events {
        let before = last.insert(&event.key, event);
        let state = before.and_then(|before| Some((before.revision, before.change.after()?)));
        let fits = match &event.change {
            Change::Deleted { value } => state.is_some_and(|(_, last)| last == value),
            // `phantom.rs` reports a value without a writer.
            Change::Put { value } => match index.writer(value).map(|(_, writer)| &writer.call) {
                Some(Call::Create { .. }) => state.is_none(),
                Some(Call::Patch { .. }) => state.is_some(),
                Some(Call::Update { expected, .. }) => {
                    state == Some((expected.revision, expected.value.as_str()))
                }
                _ => true,
            },
        };
        if !fits {
            let before = before.map_or("nothing".to_owned(), ToString::to_string);
            let whose = match &event.change {
                Change::Put { value } => index.writer(value).map(|(number, _)| index.name(number)),
                Change::Deleted { .. } => None,
            };
            let whose = whose.map_or(String::new(), |name| format!(": {name}"));
            found.push(violation(CHECK, format!("{event} does not fit {before} before it{whose}")));
        }
    }
    found
}

/// Assigns a revision to every operation, in the order of their calls.
fn real_time(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let mut by_call: Vec<usize> = (0..history.operations.len()).collect();
    by_call.sort_by_key(|&number| (history.operations[number].called, number));
    // Placed operations that are not yet in the floor, by the time of their answers.
    let mut returning: BTreeMap<(u64, usize), u64> = BTreeMap::new();
    let mut floor: (u64, Option<usize>) = (0, None);
    let mut found = Vec::new();
    for number in by_call {
        let operation = &history.operations[number];
        while let Some(first) = returning.first_entry().filter(|first| first.key().0 < operation.called) {
            let ((_, other), revision) = first.remove_entry();
            if revision > floor.0 {
                floor = (revision, Some(other));
            }
        }
        let answered = !matches!(operation.outcome, Outcome::Unknown | Outcome::NotEntered);
        match place(index, operation, floor.0) {
            Ok(Some(revision)) if answered => {
                returning.insert((operation.returned, number), revision);
            }
            Ok(_) => {}
            Err(why) => {
                let name = index.name(number);
                let after = floor.1.map_or("the beginning".to_owned(), |other| index.name(other));
                let floor = floor.0;
                let what = format!("{name}: {why}, though the store was at {floor} before, after {after}");
                found.push(violation(CHECK, what));
            }
        }
    }
    found
}

/// Returns the lowest revision from `floor` on at which an operation can have happened; `None` if the
/// operation proves nothing. A write has a revision of its own, above `floor`.
fn place(index: &Index<'_>, operation: &Operation, floor: u64) -> Result<Option<u64>, String> {
    let own = |revision: u64| match revision > floor {
        true => Ok(Some(revision)),
        false => Err(format!("it has revision {revision}")),
    };
    match (&operation.outcome, role(operation)) {
        (Outcome::Listed { revision, .. }, _) if *revision < floor => {
            Err(format!("it shows revision {revision}"))
        }
        (Outcome::Listed { revision, .. }, _) => Ok(Some(*revision)),
        (Outcome::Written { revision } | Outcome::Deleted { revision: Some(revision) }, _) => own(*revision),
        (Outcome::Unknown, _) => {
            let put = operation.call.value().and_then(|value| index.put(value));
            put.map_or(Ok(None), |event| own(event.revision))
        }
        (Outcome::Deleted { revision: None }, Some(Role::Change { when, .. })) => {
            let key = operation.call.key().unwrap_or_default();
            let mut deletions = index.of(key).iter().filter(|event| match &event.change {
                Change::Deleted { value } => event.revision > floor && when.holds(Some(&value.as_str())),
                Change::Put { .. } => false,
            });
            let first = deletions.next().ok_or("no deletion comes later")?;
            Ok(Some(first.revision))
        }
        (_, Some(Role::Observe(condition))) => {
            let key = operation.call.key().unwrap_or_default();
            let seen = observable(index.of(key), condition, floor);
            seen.map(Some).ok_or_else(|| "it saw what was the state no more, if ever it was".to_owned())
        }
        _ => Ok(None),
    }
}

/// Returns the lowest revision from `floor` on at which a condition on a key's state holds.
fn observable(events: &[&Event], condition: Condition<&str>, floor: u64) -> Option<u64> {
    let (past, future) = events.split_at(events.partition_point(|event| event.revision <= floor));
    let holds = |event: &&Event| condition.holds(event.change.after().as_ref());
    let now = past.last().map_or_else(|| condition.holds(None), holds);
    if now {
        return Some(floor);
    }
    future.iter().find(|event| holds(event)).map(|event| event.revision)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected, update};
    use super::*;
    use crate::history::Refusal;

    #[test]
    fn an_orderly_run_passes() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.create(1, "b", "b1", (3, 8), 2).put("b", "b1", 2);
        run.update(0, "a", ("a1", 1), "a2", (4, 7), 5).put("a", "a2", 5);
        // The reads are concurrent with both writes: the old state, the new state and absence are all right.
        run.read(2, "a", Some(("a1", 1)), (5, 6)).read(3, "b", None, (5, 6)).list(4, 5, &[], (5, 6));
        run.unknown_delete(1, "b", 9).deleted("b", "b1", 6).unknown_delete(5, "a", 9);
        run.refused(0, update("a", ("a1", 1), "x"), Refusal::Conflict, (10, 11));
        run.delete(0, "a", None, (12, 13), None).deleted("a", "a2", 8);
        run.refused(0, update("a", ("a2", 5), "y"), Refusal::NotFound, (14, 15));
        run.unknown_create(2, "a", "a3", 14).put("a", "a3", 9).unknown_create(3, "a", "a4", 14);
        run.refused(0, Call::Create { key: "a".into(), value: "z".into() }, Refusal::AlreadyExists, (16, 17));
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_truth_that_does_not_increase() {
        let mut run = Run::default();
        run.put("a", "a1", 2).put("b", "b1", 2);
        rejected(&check(&run.history), "put a \"a1\"@2", "and then put b \"b1\"@2");
        run.history.truth.events[1].revision = 1;
        rejected(&check(&run.history), "put a \"a1\"@2", "and then put b \"b1\"@1");
        run.history.truth.events[0].revision = 0;
        rejected(&check(&run.history), "put a \"a1\"@0", "before the first revision");
    }

    #[test]
    fn changes_that_do_not_fit() {
        let mut over = Run::default();
        over.unknown_create(0, "a", "a1", 1)
            .put("a", "a1", 1)
            .unknown_create(1, "a", "a2", 1)
            .put("a", "a2", 2);
        rejected(&check(&over.history), "put a \"a2\"@2 does not fit put a \"a1\"@1", "operation 1");
        let mut absent = Run::default();
        absent.unknown_update(0, "a", ("a1", 1), "a2", 1).put("a", "a2", 2);
        rejected(&check(&absent.history), "does not fit nothing", "operation 0");
        let mut gone = Run::default();
        gone.deleted("a", "a1", 1);
        rejected(&check(&gone.history), "deletion of a", "does not fit nothing");
        let mut other = Run::default();
        other.put("a", "a1", 1).put("a", "a2", 2).deleted("a", "a1", 3).deleted("a", "a1", 4);
        rejected(&check(&other.history), "deletion of a \"a1\"@3", "does not fit put a \"a2\"@2");
        rejected(&check(&other.history), "deletion of a \"a1\"@4", "does not fit deletion of a \"a1\"@3");
    }

    #[test]
    fn two_winners_from_one_version() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.update(0, "a", ("a1", 1), "a2", (3, 6), 2).put("a", "a2", 2);
        run.update(1, "a", ("a1", 1), "a3", (3, 6), 3).put("a", "a3", 3);
        rejected(&check(&run.history), "put a \"a3\"@3 does not fit put a \"a2\"@2", "operation 2");
    }

    #[test]
    fn a_write_below_one_that_was_acknowledged() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 5)
            .create(1, "b", "b1", (3, 4), 4)
            .put("b", "b1", 4)
            .put("a", "a1", 5);
        rejected(&check(&run.history), "operation 1", "it has revision 4, though the store was at 5");
        run.history.operations[1].outcome = Outcome::Unknown;
        rejected(&check(&run.history), "operation 1", "it has revision 4, though the store was at 5");
        run.history.operations[0].returned = 3;
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_list_from_the_past() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 5).put("a", "a1", 5).list(1, 4, &[], (3, 4));
        rejected(&check(&run.history), "operation 1", "shows revision 4, though the store was at 5");
    }

    #[test]
    fn an_answer_that_comes_late_lowers_no_floor() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 5).put("a", "a1", 5).read(1, "b", None, (1, 3)).list(
            2,
            4,
            &[],
            (4, 5),
        );
        rejected(&check(&run.history), "operation 2", "after operation 0");
    }

    #[test]
    fn a_stale_read() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.update(0, "a", ("a1", 1), "a2", (3, 4), 2).put("a", "a2", 2);
        run.read(1, "a", Some(("a1", 1)), (5, 6));
        rejected(
            &check(&run.history),
            "operation 2",
            "the state no more, if ever it was, though the store was at 2",
        );
        run.history.operations[2].outcome = Outcome::Read(None);
        rejected(&check(&run.history), "operation 2", "the state no more");
    }

    #[test]
    fn a_read_that_falls_behind_another_read() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.unknown_update(0, "a", ("a1", 1), "a2", 3).put("a", "a2", 2);
        run.read(1, "a", Some(("a2", 2)), (4, 5)).read(2, "a", Some(("a1", 1)), (6, 7));
        rejected(&check(&run.history), "operation 3", "after operation 2");
    }

    #[test]
    fn a_read_that_falls_behind_across_keys() {
        // Each key alone is linearizable: the creation of b is unknown and may come late.
        let mut run = Run::default();
        run.unknown_create(0, "b", "b1", 1).put("b", "b1", 1);
        run.create(1, "a", "a1", (2, 3), 2).put("a", "a1", 2).read(2, "b", None, (4, 5));
        rejected(&check(&run.history), "operation 2", "after operation 1");
    }

    #[test]
    fn refusals_without_a_reason() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        for (call, refusal) in [
            (update("a", ("a1", 1), "x"), Refusal::Conflict),
            (update("a", ("a1", 1), "x"), Refusal::NotFound),
            (Call::Delete { key: "a".into(), expected: None }, Refusal::NotFound),
            (Call::Create { key: "b".into(), value: "x".into() }, Refusal::AlreadyExists),
        ] {
            let mut run = Run { history: run.history.clone() };
            run.refused(1, call, refusal, (3, 4));
            rejected(&check(&run.history), "operation 1", "the state no more, if ever it was");
        }
    }

    #[test]
    fn deletes_below_one_that_was_acknowledged() {
        let mut run = Run::default();
        run.put("a", "a1", 1).deleted("a", "a1", 2).create(0, "b", "b1", (1, 2), 3).put("b", "b1", 3);
        run.delete(1, "a", None, (3, 4), Some(2));
        rejected(&check(&run.history), "operation 1", "it has revision 2");
        run.history.operations[1].outcome = Outcome::Deleted { revision: None };
        rejected(&check(&run.history), "operation 1", "no deletion comes later");
    }
}
