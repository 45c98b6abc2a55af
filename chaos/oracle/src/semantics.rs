//! Sequential specification of a Kubernetes object: what an operation proves about its key. `order.rs`
//! compares it with the truth, `linearizable.rs` gives it to the search.
//!
//! States are compared by value alone: values are unique in a run, so value and revision identify each other
//! (`lists.rs` and `lost.rs` check that they do).

use crate::history::{Call, Operation, Outcome, Refusal};

/// Condition on the state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition<T> {
    /// No object exists.
    Absent,
    /// An object exists.
    Present,
    /// An object with this value exists.
    Is(T),
    /// An object with another value exists.
    IsNot(T),
}

impl<T: PartialEq> Condition<T> {
    /// Returns whether the condition holds for a state; `None` is the absent object.
    pub(super) fn holds(&self, state: Option<&T>) -> bool {
        match (self, state) {
            (Self::Absent, state) => state.is_none(),
            (Self::Present, state) => state.is_some(),
            (Self::Is(value), state) => state == Some(value),
            (Self::IsNot(value), state) => state.is_some_and(|state| state != value),
        }
    }
}

/// What an operation did, or what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role<T> {
    /// Replaced the state by `to` (`None` deletes) where the condition held.
    Change { when: Condition<T>, to: Option<T> },
    /// Saw that the condition held.
    Observe(Condition<T>),
}

/// Returns the role of an operation on its key; `None` if it proves nothing: it never entered, it is a read
/// without an answer, or it is a list, which concerns all keys.
pub(super) fn role(operation: &Operation) -> Option<Role<&str>> {
    use Condition::{Absent, Is, IsNot, Present};
    let role = match (&operation.call, &operation.outcome) {
        (Call::Create { value, .. }, Outcome::Written { .. } | Outcome::Unknown) => {
            Role::Change { when: Absent, to: Some(value.as_str()) }
        }
        (Call::Update { expected, value, .. }, Outcome::Written { .. } | Outcome::Unknown) => {
            Role::Change { when: Is(expected.value.as_str()), to: Some(value.as_str()) }
        }
        (Call::Patch { value, .. }, Outcome::Written { .. } | Outcome::Unknown) => {
            Role::Change { when: Present, to: Some(value.as_str()) }
        }
        (Call::Delete { expected, .. }, Outcome::Deleted { .. } | Outcome::Unknown) => {
            Role::Change { when: expected.as_ref().map_or(Present, |e| Is(e.value.as_str())), to: None }
        }
        (Call::Create { .. }, Outcome::Refused(Refusal::AlreadyExists)) => Role::Observe(Present),
        (
            Call::Update { expected, .. } | Call::Delete { expected: Some(expected), .. },
            Outcome::Refused(Refusal::Conflict),
        ) => Role::Observe(IsNot(expected.value.as_str())),
        (
            Call::Update { .. } | Call::Delete { .. } | Call::Patch { .. },
            Outcome::Refused(Refusal::NotFound),
        ) => Role::Observe(Absent),
        (Call::Get { .. }, Outcome::Read(found)) => {
            Role::Observe(found.as_ref().map_or(Absent, |found| Is(found.value.as_str())))
        }
        _ => return None,
    };
    Some(role)
}

#[cfg(test)]
mod tests {
    use super::Condition::{Absent, Is, IsNot, Present};

    #[test]
    fn conditions_hold_of_the_right_states() {
        for (condition, of_none, of_one, of_two) in [
            (Absent, true, false, false),
            (Present, false, true, true),
            (Is(1), false, true, false),
            (IsNot(1), false, false, true),
        ] {
            let held = [None, Some(&1), Some(&2)].map(|state| condition.holds(state));
            assert_eq!(held, [of_none, of_one, of_two], "{condition:?}");
        }
    }
}
