//! Checks that every key is linearizable (Herlihy & Wing 1990): its gets, creates, updates and deletes, and
//! what lists saw of it, fit one order that respects real time. Keys are checked one by one, since
//! linearizability is local (theorem 1 there). The search is porcupine-rs, the algorithm of Wing & Gong 1993
//! with the memory of Lowe 2017 ("Testing for linearizability"). Called by `check`. The truth is not used, so
//! a wrong truth cannot hide a wrong answer.
//!
//! `search.rs` has the search; this file prepares its input, and traces a violation to operations.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::index::{Index, violation};
use super::search::{Entry, Verdict, search};
use super::semantics::{Condition, Role, role};
use crate::history::{History, Operation, Outcome};
use crate::kind::Kind;

/// Name of this check in reports.
pub const CHECK: &str = "linearizable";

/// Name of the finding that a key could not be decided.
pub const UNDECIDED: &str = "linearizable: undecided";

/// Maximum cost of the search of one key: 1 for a step that is rejected, 32 for one that is taken and
/// remembered. Half a million remembered steps take some hundred MiB at most; a thousand operations of a key,
/// a tenth of them unknown, cost about a hundredth of the budget.
pub const BUDGET: u64 = 16_000_000;

/// Returns the keys that are not linearizable, or could not be decided within [`BUDGET`].
pub fn check(history: &History) -> Vec<Violation> {
    check_within(history, BUDGET)
}

/// Like [`check`], with a budget for each key.
pub fn check_within(history: &History, budget: u64) -> Vec<Violation> {
    let index = Index::new(history);
    let keys = partitions(history);
    keys.iter().filter_map(|(key, entries)| judge(&index, key, entries, budget)).collect()
}

/// Groups operations and observations by key, with numbers in place of values.
fn partitions(history: &History) -> BTreeMap<&str, Vec<Entry>> {
    let mut keys: BTreeSet<&str> = history.operations.iter().filter_map(|o| o.call.key()).collect();
    for operation in &history.operations {
        if let Outcome::Listed { objects, .. } = &operation.outcome {
            keys.extend(objects.keys().map(String::as_str));
        }
    }
    let mut numbers = Numbers::default();
    let mut partitions: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let mut seen: Vec<(&str, Role<&str>)> = Vec::new();
        if let (Some(key), Some(role)) = (operation.call.key(), role(operation)) {
            seen.push((key, role));
        }
        if let Outcome::Listed { objects, .. } = &operation.outcome {
            let kind = operation.call.kind();
            seen.extend(keys.iter().filter(|key| Kind::of(key) == kind).map(|key| {
                let found = objects.get(*key).map_or(Condition::Absent, |v| Condition::Is(v.value.as_str()));
                (*key, Role::Observe(found))
            }));
        }
        for (key, role) in seen {
            partitions.entry(key).or_default().push(entry(number, operation, numbers.role(role)));
        }
    }
    partitions
}

fn entry(number: usize, operation: &Operation, role: Role<u32>) -> Entry {
    let returned = (operation.outcome != Outcome::Unknown).then_some(operation.returned);
    Entry { number, called: operation.called, returned, role }
}

/// Assigns a number to each value, so that the states of the search are small.
#[derive(Default)]
struct Numbers<'a>(BTreeMap<&'a str, u32>);

impl<'a> Numbers<'a> {
    fn value(&mut self, value: &'a str) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(value).or_insert(next)
    }

    fn condition(&mut self, condition: Condition<&'a str>) -> Condition<u32> {
        match condition {
            Condition::Absent => Condition::Absent,
            Condition::Present => Condition::Present,
            Condition::Is(value) => Condition::Is(self.value(value)),
            Condition::IsNot(value) => Condition::IsNot(self.value(value)),
        }
    }

    fn role(&mut self, role: Role<&'a str>) -> Role<u32> {
        match role {
            Role::Change { when, to } => {
                Role::Change { when: self.condition(when), to: to.map(|value| self.value(value)) }
            }
            Role::Observe(condition) => Role::Observe(self.condition(condition)),
        }
    }
}

fn judge(index: &Index<'_>, key: &str, entries: &[Entry], budget: u64) -> Option<Violation> {
    match search(entries, budget) {
        Verdict::Linearizable => None,
        Verdict::Undecided => {
            let count = entries.len();
            let what = format!("key {key}: a budget of {budget} does not decide its {count} operations");
            Some(violation(UNDECIDED, what))
        }
        Verdict::Violated => {
            let (culprit, concurrent) = first_violated(entries, budget);
            let names: Vec<_> = concurrent.iter().map(|&number| index.name(number)).collect();
            let beside = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            let name = index.name(culprit);
            let what = format!("key {key}: no order of its operations explains all until {name} returned");
            Some(violation(CHECK, format!("{what}\nbeside it: {beside}")))
        }
    }
}

/// Returns the operation with whose answer a key ceases to be linearizable, and those concurrent with it.
/// Prefixes of a linearizable history are linearizable, so a binary search over the answers finds it.
fn first_violated(entries: &[Entry], budget: u64) -> (usize, Vec<usize>) {
    let mut answers: Vec<(u64, usize)> =
        entries.iter().filter_map(|e| e.returned.map(|returned| (returned, e.number))).collect();
    answers.sort_unstable();
    let (mut passes, mut fails) = (0, answers.len());
    while passes + 1 < fails {
        let middle = passes.midpoint(fails);
        match search(&prefix(entries, answers[middle - 1].0), budget) {
            Verdict::Violated => fails = middle,
            Verdict::Linearizable | Verdict::Undecided => passes = middle,
        }
    }
    let Some(&(until, culprit)) = answers.get(fails.saturating_sub(1)) else { return (0, Vec::new()) };
    let called = entries.iter().find(|e| e.number == culprit).map_or(0, |e| e.called);
    let beside = |e: &&Entry| {
        e.number != culprit && e.called <= until && e.returned.is_some_and(|returned| returned >= called)
    };
    (culprit, entries.iter().filter(beside).map(|e| e.number).collect())
}

/// Returns the history up to a moment: operations that had not returned by then are unknown.
fn prefix(entries: &[Entry], until: u64) -> Vec<Entry> {
    let called = entries.iter().filter(|e| e.called <= until).cloned();
    called
        .map(|mut e| {
            e.returned = e.returned.filter(|returned| *returned <= until);
            e
        })
        // An operation that changes nothing and is not answered is no evidence.
        .filter(|e| e.returned.is_some() || matches!(e.role, Role::Change { .. }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected, update};
    use super::*;
    use crate::history::{Call, Refusal};

    fn created() -> Run {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1);
        run
    }

    #[test]
    fn concurrent_operations_that_fit_some_order_pass() {
        let mut run = created();
        run.update(0, "a", ("a1", 1), "a2", (3, 9), 2);
        run.read(1, "a", Some(("a2", 2)), (4, 5)).read(2, "a", Some(("a2", 2)), (6, 7));
        run.refused(3, update("a", ("a1", 1), "x"), Refusal::Conflict, (3, 8));
        run.delete(4, "a", None, (8, 12), None).read(1, "a", None, (10, 11));
        run.refused(3, update("a", ("a1", 1), "y"), Refusal::NotFound, (13, 14)).list(3, 3, &[], (15, 16));
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn unknown_writes_may_happen_late_or_never() {
        let mut run = created();
        run.unknown_update(1, "a", ("a1", 1), "a2", 3).unknown_update(2, "a", ("a1", 1), "a3", 3);
        run.unknown_delete(3, "a", 3).unknown_delete(4, "a", 3).unknown_create(5, "a", "a4", 3);
        run.read(0, "a", Some(("a1", 1)), (4, 5)).read(0, "a", Some(("a3", 2)), (6, 7));
        run.read(0, "a", None, (8, 9)).read(0, "a", Some(("a4", 4)), (10, 11));
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn unknown_writes_happen_once_and_not_before_their_call() {
        let mut twice = created();
        twice.unknown_delete(1, "a", 3).read(0, "a", None, (4, 5)).create(0, "a", "a2", (6, 7), 3);
        twice.read(0, "a", None, (8, 9));
        rejected(&check(&twice.history), "until operation 4", "key a");
        let mut early = created();
        early.read(0, "a", None, (3, 4)).unknown_delete(1, "a", 5);
        rejected(&check(&early.history), "until operation 1", "key a");
    }

    #[test]
    fn a_write_that_never_entered_is_seen() {
        let mut run = created();
        run.not_entered(1, update("a", ("a1", 1), "a2"), 3).read(0, "a", Some(("a2", 2)), (4, 5));
        rejected(&check(&run.history), "until operation 2", "key a");
    }

    #[test]
    fn a_stale_read_and_a_list_that_is_stale_for_one_key() {
        let mut run = created();
        run.update(0, "a", ("a1", 1), "a2", (3, 4), 2).read(1, "a", Some(("a1", 1)), (5, 6));
        rejected(&check(&run.history), "until operation 2", "beside it: nothing");
        let mut list = created();
        list.create(0, "b", "b1", (3, 4), 2).list(1, 2, &[("b", "b1", 2)], (5, 6));
        rejected(&check(&list.history), "until operation 2", "key a");
    }

    #[test]
    fn a_read_that_falls_behind_another_read() {
        let mut run = created();
        run.update(0, "a", ("a1", 1), "a2", (3, 20), 2);
        run.read(1, "a", Some(("a2", 2)), (4, 5)).read(2, "a", Some(("a1", 1)), (6, 7));
        rejected(&check(&run.history), "until operation 3", "beside it: operation 1");
    }

    #[test]
    fn two_winners_from_one_version() {
        let mut run = created();
        run.update(0, "a", ("a1", 1), "a2", (3, 6), 2).update(1, "a", ("a1", 1), "a3", (4, 7), 3);
        rejected(&check(&run.history), "until operation 2", "beside it: operation 1");
        let mut create = created();
        create.create(1, "a", "a2", (1, 3), 2);
        rejected(&check(&create.history), "until operation 1", "beside it: operation 0");
    }

    #[test]
    fn an_update_of_a_version_that_was_gone() {
        let mut run = created();
        run.delete(0, "a", None, (3, 4), Some(2)).create(0, "a", "a2", (5, 6), 3);
        run.update(1, "a", ("a1", 1), "a3", (7, 8), 4);
        rejected(&check(&run.history), "until operation 3", "key a");
    }

    #[test]
    fn refusals_without_a_reason() {
        for (call, refusal) in [
            (update("a", ("a1", 1), "x"), Refusal::Conflict),
            (update("a", ("a1", 1), "x"), Refusal::NotFound),
            (Call::Delete { key: "a".into(), expected: None }, Refusal::NotFound),
            (Call::Create { key: "b".into(), value: "x".into() }, Refusal::AlreadyExists),
        ] {
            let mut run = created();
            run.refused(1, call, refusal, (3, 4));
            rejected(&check(&run.history), "until operation 1", "key");
        }
    }

    #[test]
    fn only_the_key_at_fault_is_named() {
        let mut run = created();
        run.create(0, "b", "b1", (3, 4), 2).read(0, "b", None, (5, 6)).read(0, "a", Some(("a1", 1)), (7, 8));
        let found = check(&run.history);
        assert_eq!(found.len(), 1);
        rejected(&found, "key b", "until operation 2");
    }

    #[test]
    fn a_search_without_budget_says_so() {
        let mut run = created();
        run.read(0, "a", None, (3, 4)).read(1, "b", None, (3, 4));
        for budget in 0..3 {
            let found = check_within(&run.history, budget);
            rejected(&found, "key a", "does not decide");
            assert!(found.iter().all(Violation::is_undecided), "{budget}: {found:?}");
        }
        let found = check_within(&run.history, 100);
        rejected(&found, "key a", "until operation 1");
        assert!(!found[0].is_undecided());
    }

    #[test]
    fn many_unknown_writes_stay_within_the_budget() {
        let mut run = Run::default();
        let mut version = ("v0".to_owned(), 1);
        run.create(0, "a", "v0", (1, 2), 1);
        for round in 1..200_u64 {
            let at = round * 10;
            let value = format!("v{round}");
            let before = (version.0.as_str(), version.1);
            run.unknown_delete(9, "a", at).unknown_create(8, "a", &format!("u{round}"), at);
            run.unknown_update(7, "a", before, &format!("w{round}"), at);
            run.update(0, "a", before, &value, (at + 1, at + 3), round + 1);
            run.read(0, "a", Some((&value, round + 1)), (at + 4, at + 5));
            version = (value, round + 1);
        }
        assert_eq!(check(&run.history), []);
        run.read(0, "a", Some(("v50", 51)), (9000, 9001));
        rejected(&check(&run.history), "key a", "until operation 996");
    }

    #[test]
    fn unknown_writes_that_do_the_same_are_not_tried_in_every_order() {
        let mut run = created();
        for round in 0..40 {
            run.unknown_delete(9, "a", 3 + round).unknown_create(8, "a", &format!("u{round}"), 3 + round);
        }
        run.read(0, "a", Some(("ghost", 9)), (90, 91));
        rejected(&check(&run.history), "key a", "until operation 81");
    }
}
