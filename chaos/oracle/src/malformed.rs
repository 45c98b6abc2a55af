//! Checks that the other checks can judge the history: values are unique, answers fit their calls, and the
//! moments of one client are distinct. A recorder that breaks this would make the oracle blind without being
//! noticed (Jepsen rejects malformed histories for the same reason: <https://github.com/jepsen-io/history>).
//! Called by `check` before all others.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::index::violation;
use crate::history::{Call, History, Operation, Outcome, Refusal};

/// Name of this check in reports.
pub const CHECK: &str = "malformed";

/// Returns what makes the history unfit for the other checks.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut values = BTreeMap::new();
    let mut stamps = BTreeSet::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let mut add = |what: &str| {
            found.push(violation(CHECK, format!("operation {number} ({operation}): {what}")));
        };
        if !fits(operation) {
            add("no call of this kind can end like this");
        }
        if let Some(first) = operation.call.value().and_then(|value| values.insert(value, number)) {
            add(&format!("operation {first} writes the same value, and values must be unique"));
        }
        let answered = !matches!(operation.outcome, Outcome::Unknown | Outcome::NotEntered);
        if answered && operation.returned < operation.called {
            add("it returned before it was called");
        }
        let moments = [Some(operation.called), answered.then_some(operation.returned)];
        for moment in moments.into_iter().flatten() {
            if !stamps.insert((operation.client, moment)) {
                add(&format!(
                    "its client has two moments stamped {moment}, so their order is lost: use `Stamps`"
                ));
            }
        }
    }
    found
}

fn fits(operation: &Operation) -> bool {
    use Refusal::{AlreadyExists, Conflict, NotFound};
    match (&operation.call, &operation.outcome) {
        (_, Outcome::Unknown | Outcome::NotEntered) => true,
        (Call::Create { .. }, outcome) => {
            matches!(outcome, Outcome::Written { .. } | Outcome::Refused(AlreadyExists))
        }
        (Call::Update { .. }, outcome) => {
            matches!(outcome, Outcome::Written { .. } | Outcome::Refused(Conflict | NotFound))
        }
        // A delete without a precondition cannot conflict.
        (Call::Delete { expected: None, .. }, Outcome::Refused(Conflict)) => false,
        (Call::Delete { .. }, outcome) => {
            matches!(outcome, Outcome::Deleted { .. } | Outcome::Refused(Conflict | NotFound))
        }
        (Call::Get { .. }, outcome) => matches!(outcome, Outcome::Read(_)),
        (Call::Patch { .. }, outcome) => {
            matches!(outcome, Outcome::Written { .. } | Outcome::Refused(NotFound))
        }
        (Call::List { .. } | Call::Pages { .. }, outcome) => matches!(outcome, Outcome::Listed { .. }),
        (Call::ListAny { .. }, outcome) => matches!(outcome, Outcome::Shown { .. }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected};
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn a_proper_history_passes() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).read(0, "a", Some(("a1", 1)), (3, 4)).unknown_delete(1, "a", 1);
        run.refused(2, Call::Delete { key: "a".into(), expected: None }, Refusal::NotFound, (1, 2));
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_value_written_by_two_operations() {
        let mut run = Run::default();
        run.create(0, "a", "v", (1, 2), 1).unknown_create(1, "b", "v", 3);
        rejected(&check(&run.history), "operation 1", "operation 0 writes the same value");
    }

    #[test]
    fn answers_that_fit_no_call() {
        let delete = Call::Delete { key: "a".into(), expected: None };
        let get = Call::Get { key: "a".into() };
        let create = Call::Create { key: "a".into(), value: "v".into() };
        for (call, refusal) in [
            (delete, Refusal::Conflict),
            (get, Refusal::NotFound),
            (Call::List { kind: Kind::ConfigMap }, Refusal::NotFound),
            (create.clone(), Refusal::Conflict),
            (create, Refusal::NotFound),
            (Call::Patch { key: "a".into(), value: "w".into() }, Refusal::Conflict),
            (Call::ListAny { kind: Kind::ConfigMap }, Refusal::NotFound),
        ] {
            let mut run = Run::default();
            run.refused(0, call, refusal, (1, 2));
            rejected(&check(&run.history), "operation 0", "no call of this kind");
        }
    }

    #[test]
    fn moments_that_cannot_be_told_apart_or_run_backwards() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).read(0, "a", None, (2, 3));
        rejected(&check(&run.history), "operation 1", "two moments stamped 2");
        let mut run = Run::default();
        run.create(0, "a", "a1", (5, 2), 1);
        rejected(&check(&run.history), "operation 0", "returned before");
    }
}
