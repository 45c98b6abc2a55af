//! Checks that lists and gets show a state that existed. A list is a snapshot: exactly the objects of the
//! truth at its revision, with their values and revisions
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>; a list torn across
//! revisions is the read skew of Berenson et al. 1995). A get shows a value at the revision that put it.
//! Whether either is fresh is checked by `order.rs` and `linearizable.rs`; a list of any version need not be.
//! Called by `check`.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::index::{Index, violation};
use crate::history::{History, Outcome, Versioned};

/// Name of this check in reports.
pub const CHECK: &str = "lists";

/// Returns the lists and gets that show a state that never existed.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let mut found = Vec::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let why = match (&operation.outcome, operation.call.key()) {
            (Outcome::Listed { revision, objects } | Outcome::Shown { revision, objects }, _) => {
                differences(objects, &index.state(operation.call.kind(), *revision))
            }
            (Outcome::Read(Some(version)), Some(key)) => {
                let here = index.at(version.revision);
                let same = here.is_some_and(|e| e.key == key && e.change.after() == Some(&version.value));
                let there = here.map_or_else(|| "nothing".to_owned(), ToString::to_string);
                (!same).then(|| format!("at {} the truth has {there}", version.revision))
            }
            _ => None,
        };
        if let Some(why) = why {
            found.push(violation(CHECK, format!("{}: {why}", index.name(number))));
        }
    }
    found
}

/// Describes how listed objects differ from those of the truth; `None` if they do not. `watches.rs` uses it
/// too.
pub(super) fn differences(
    listed: &BTreeMap<String, Versioned>,
    truth: &BTreeMap<String, Versioned>,
) -> Option<String> {
    let show = |version: Option<&Versioned>| version.map_or("nothing".to_owned(), ToString::to_string);
    let keys: BTreeSet<&String> = listed.keys().chain(truth.keys()).collect();
    let differ: Vec<String> = keys
        .into_iter()
        .filter(|key| listed.get(*key) != truth.get(*key))
        .map(|key| format!("{key} is listed as {}, was {}", show(listed.get(key)), show(truth.get(key))))
        .collect();
    (!differ.is_empty()).then(|| differ.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected};
    use super::*;

    fn run() -> Run {
        let mut run = Run::default();
        run.put("a", "a1", 1).put("b", "b1", 2).put("a", "a2", 5).deleted("b", "b1", 6);
        run
    }

    #[test]
    fn snapshots_pass() {
        let mut run = run();
        run.list(0, 0, &[], (1, 2));
        run.list(0, 1, &[("a", "a1", 1)], (3, 4));
        run.list(0, 4, &[("a", "a1", 1), ("b", "b1", 2)], (5, 6));
        run.list(0, 6, &[("a", "a2", 5)], (7, 8)).list(0, 99, &[("a", "a2", 5)], (9, 10));
        run.read(0, "a", Some(("a1", 1)), (11, 12)).read(0, "b", None, (13, 14));
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_list_torn_across_two_revisions() {
        let mut torn = run();
        torn.list(0, 5, &[("a", "a1", 1), ("b", "b1", 2)], (1, 2));
        rejected(&check(&torn.history), "operation 0", "a is listed as \"a1\"@1, was \"a2\"@5");
        let mut torn = run();
        torn.list(0, 2, &[("a", "a2", 5), ("b", "b1", 2)], (1, 2));
        rejected(&check(&torn.history), "operation 0", "a is listed as \"a2\"@5, was \"a1\"@1");
    }

    #[test]
    fn a_list_with_too_few_or_too_many() {
        let mut few = run();
        few.list(0, 4, &[("a", "a1", 1)], (1, 2));
        rejected(&check(&few.history), "operation 0", "b is listed as nothing");
        let mut many = run();
        many.list(0, 6, &[("a", "a2", 5), ("b", "b1", 2)], (1, 2));
        rejected(&check(&many.history), "operation 0", "was nothing");
    }

    #[test]
    fn a_get_of_what_never_was() {
        let mut value = run();
        value.read(0, "a", Some(("a2", 1)), (1, 2));
        rejected(&check(&value.history), "operation 0", "the truth has put a \"a1\"@1");
        let mut key = run();
        key.read(0, "b", Some(("a1", 1)), (1, 2));
        rejected(&check(&key.history), "operation 0", "the truth has put a \"a1\"@1");
        let mut revision = run();
        revision.read(0, "a", Some(("a1", 3)), (1, 2));
        rejected(&check(&revision.history), "operation 0", "the truth has nothing");
        let mut gone = run();
        gone.read(0, "b", Some(("b1", 6)), (1, 2));
        rejected(&check(&gone.history), "operation 0", "the truth has deletion of b");
    }
}
