//! Searches an order of one key's operations: the model that porcupine-rs runs (Wing & Gong 1993 with the
//! memory of Lowe 2017), a budget, and rules that keep unknown outcomes from multiplying the search. Called
//! by `linearizable.rs`.
//!
//! Porcupine's usual model lets an operation with an unknown outcome return at infinity, and happen without
//! effect wherever it does not apply. In this model it happens only where it applies. A last operation,
//! `End`, comes after all answers; an unknown operation that did not happen before `End` never happened.
//! Three more rules keep the search small; none of them changes a verdict:
//!
//! - Values that no condition names are treated as one value.
//! - Unknown operations that do the same at any time, deletes without a
//!   precondition and creates of such values, happen in the order of their calls:
//!   the earlier can always stand in for the later.
//! - A value is written once. So its state is left only after all operations that certainly found the value
//!   have happened: they could not happen later.
//!
//! A first search leaves out the unknown operations whose effect no answer shows: an operation with an unknown
//! outcome may never have happened, so an order without it is an order. Only when there is none do they
//! count, each of which can double the search.
//!
//! Each step has a cost, and beyond the budget all steps fail, which ends the search. A timeout, as
//! porcupine-rs offers, would make verdicts depend on the machine. Its entry point for one partition without
//! a timeout starts no thread either, so each key is searched by a call of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use porcupine_rs::{Model, Operation, check_operations};

use super::semantics::{Condition, Role};

/// Time at which `End` is called, later than any moment of a history.
const END: i64 = i64::MAX - 2;

/// Number that stands for all values that no condition names.
const UNNAMED: u32 = u32::MAX;

/// Cost of a step that porcupine-rs remembers; a rejected step costs 1.
pub(super) const ACCEPTED: u64 = 32;

/// What an operation proves about one key, with numbers in place of values.
#[derive(Clone)]
pub(super) struct Entry {
    /// Index of the operation in the history.
    pub(super) number: usize,
    /// Time of the call.
    pub(super) called: u64,
    /// Time of the answer; `None` if the outcome is unknown.
    pub(super) returned: Option<u64>,
    /// What the operation did or saw.
    pub(super) role: Role<u32>,
}

/// Result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An order was found.
    Linearizable,
    /// No order exists.
    Violated,
    /// The budget was used up before the search ended.
    Undecided,
}

/// Searches an order for the operations of one key with a budget of `budget`: each step costs 1, or
/// [`ACCEPTED`] if it is taken.
pub(super) fn search(entries: &[Entry], budget: u64) -> Verdict {
    let named = named(entries);
    let shown = |entry: &Entry| match entry.role {
        Role::Change { to: Some(value), .. } => named.get(&value).is_some_and(|found| *found > 0),
        Role::Change { to: None, .. } | Role::Observe(_) => false,
    };
    let needed: Vec<Entry> =
        entries.iter().filter(|entry| entry.returned.is_some() || shown(entry)).cloned().collect();
    if needed.len() < entries.len() && search_all(&needed, budget / 2) == Verdict::Linearizable {
        return Verdict::Linearizable;
    }
    search_all(entries, budget)
}

/// Searches an order in which all of `entries` have their place.
fn search_all(entries: &[Entry], budget: u64) -> Verdict {
    let budget = Arc::new(AtomicU64::new(budget));
    if check_operations(&prepare(entries, &budget)) {
        Verdict::Linearizable
    } else if budget.load(Ordering::Relaxed) == 0 {
        Verdict::Undecided
    } else {
        Verdict::Violated
    }
}

/// Converts the operations to porcupine-rs's type, and adds `End`.
fn prepare(entries: &[Entry], budget: &Arc<AtomicU64>) -> Vec<Operation<Key>> {
    let named = named(entries);
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by_key(|entry| (entry.called, entry.number));
    let operation = |called, returned, action| Operation {
        client_id: None,
        call_time: called,
        return_time: returned,
        op: Step { action, budget: Arc::clone(budget) },
        metadata: None,
    };
    let mut ranks = [0; 2];
    let mut operations: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let effect = Effect::new(entry.role, &named);
            match entry.returned {
                Some(returned) => operation(time(entry.called), time(returned), Action::Certain(effect)),
                None => {
                    let rank = effect.class().map(|class| {
                        ranks[class] += 1;
                        (class, ranks[class] - 1)
                    });
                    operation(time(entry.called), i64::MAX, Action::Unknown(effect, rank))
                }
            }
        })
        .collect();
    operations.push(operation(END, END + 1, Action::End));
    operations
}

/// Returns the values that conditions name, each with the number of answered operations that found it.
fn named(entries: &[Entry]) -> BTreeMap<u32, u32> {
    let mut named = BTreeMap::new();
    for entry in entries {
        let (Role::Change { when: condition, .. } | Role::Observe(condition)) = entry.role;
        match condition {
            Condition::Is(value) => {
                *named.entry(value).or_default() += u32::from(entry.returned.is_some());
            }
            Condition::IsNot(value) => {
                named.entry(value).or_default();
            }
            Condition::Absent | Condition::Present => {}
        }
    }
    named
}

fn time(stamp: u64) -> i64 {
    i64::try_from(stamp).unwrap_or(i64::MAX).min(END - 1)
}

/// The model of one key for porcupine-rs.
#[derive(Clone, Debug)]
struct Key;

/// The value of an existing object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    value: u32,
    /// Number of answered operations that must still find the value before it may change.
    awaited: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// The object's present value, and how many unknown operations of each class have happened.
    Open(Option<Held>, [u32; 2]),
    /// `End` has happened.
    Ended,
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    Change { when: Condition<u32>, to: Option<Held> },
    Observe(Condition<u32>),
}

impl Effect {
    fn new(role: Role<u32>, named: &BTreeMap<u32, u32>) -> Self {
        let held = |value| match named.get(&value) {
            Some(&awaited) => Held { value, awaited },
            None => Held { value: UNNAMED, awaited: 0 },
        };
        match role {
            Role::Change { when, to } => Self::Change { when, to: to.map(held) },
            Role::Observe(condition) => Self::Observe(condition),
        }
    }

    /// Returns the class of an effect: effects of one class are the same at any time. `None` for other
    /// effects.
    fn class(&self) -> Option<usize> {
        match self {
            Self::Change { when: Condition::Present, to: None } => Some(0),
            Self::Change { when: Condition::Absent, to: Some(Held { value: UNNAMED, .. }) } => Some(1),
            _ => None,
        }
    }

    /// Returns the state after the effect; `None` if it cannot happen in this state.
    fn on(&self, held: Option<Held>, certain: bool) -> Option<Option<Held>> {
        let (Self::Change { when: condition, .. } | Self::Observe(condition)) = self;
        if !condition.holds(held.map(|held| held.value).as_ref()) {
            return None;
        }
        let mut held = held;
        if certain && matches!(condition, Condition::Is(_)) {
            let held = held.as_mut()?;
            held.awaited = held.awaited.checked_sub(1)?;
        }
        match self {
            Self::Observe(_) => Some(held),
            Self::Change { to, .. } => held.is_none_or(|held| held.awaited == 0).then_some(*to),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Certain(Effect),
    /// An operation with an unknown outcome, with its class and its position in that class.
    Unknown(Effect, Option<(usize, u32)>),
    End,
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    /// Budget left, shared by all steps of a search.
    budget: Arc<AtomicU64>,
}

impl Model for Key {
    type State = State;
    type Op = Step;
    type Metadata = ();

    fn init() -> State {
        State::Open(None, [0; 2])
    }

    fn step(state: &State, step: &Step) -> (bool, State) {
        // Only one thread runs the search, so the memory ordering does not matter.
        let left = step.budget.load(Ordering::Relaxed);
        let spend = |cost| step.budget.store(left.saturating_sub(cost), Ordering::Relaxed);
        if left == 0 {
            return (false, *state);
        }
        let next = match (*state, step.action) {
            (State::Ended, Action::Unknown(..)) | (State::Open(..), Action::End) => Some(State::Ended),
            (State::Ended, Action::Certain(_) | Action::End) => None,
            (State::Open(held, happened), Action::Certain(effect)) => {
                effect.on(held, true).map(|held| State::Open(held, happened))
            }
            (State::Open(held, mut happened), Action::Unknown(effect, rank)) => {
                let in_turn = rank.is_none_or(|(class, rank)| happened[class] == rank);
                if let Some((class, _)) = rank {
                    happened[class] += 1;
                }
                effect.on(held, false).filter(|_| in_turn).map(|held| State::Open(held, happened))
            }
        };
        spend(if next.is_some() { ACCEPTED } else { 1 });
        next.map_or((false, *state), |next| (true, next))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Random;
    use super::*;
    use Condition::{Absent, Is, IsNot, Present};

    /// porcupine-rs's plain model for comparison: no `End`, no classes, nothing awaited.
    #[derive(Clone, Debug)]
    struct Plain;

    impl Model for Plain {
        type State = Option<u32>;
        type Op = (Role<u32>, bool);
        type Metadata = ();

        fn init() -> Option<u32> {
            None
        }

        fn step(state: &Option<u32>, (role, certain): &(Role<u32>, bool)) -> (bool, Option<u32>) {
            match role {
                Role::Change { when, to } if when.holds(state.as_ref()) => (true, *to),
                Role::Observe(condition) if condition.holds(state.as_ref()) => (true, *state),
                _ => (!certain, *state),
            }
        }
    }

    fn plain(entries: &[Entry]) -> Verdict {
        let operation = |entry: &Entry| Operation::<Plain> {
            client_id: None,
            call_time: time(entry.called),
            return_time: entry.returned.map_or(i64::MAX, time),
            op: (entry.role, entry.returned.is_some()),
            metadata: None,
        };
        match check_operations(&entries.iter().map(operation).collect::<Vec<_>>()) {
            true => Verdict::Linearizable,
            false => Verdict::Violated,
        }
    }

    /// Returns a few random entries, mostly close to linearizable.
    fn random(seed: u64) -> Vec<Entry> {
        let mut random = Random::new(seed);
        let mut below = |bound: u32| u32::try_from(random.below(bound as usize)).unwrap();
        let count = 3 + below(7);
        let entry = |number: u32| {
            let earlier = below(number.max(1));
            let conditions = [Absent, Present, Is(earlier), IsNot(earlier)];
            let role = match below(8) {
                0 | 1 => Role::Change { when: Absent, to: Some(number) },
                2 | 3 => Role::Change { when: Is(earlier), to: Some(number) },
                4 => Role::Change { when: [Present, Is(earlier)][below(2) as usize], to: None },
                _ => Role::Observe(conditions[below(4) as usize]),
            };
            let called = u64::from(10 * number + below(20));
            let unknown = matches!(role, Role::Change { .. }) && below(2) == 0;
            let returned = (!unknown).then(|| called + 1 + u64::from(below(30)));
            Entry { number: number as usize, called, returned, role }
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn the_verdicts_are_those_of_the_plain_model() {
        let mut counts = [0; 2];
        for seed in 1..20_000 {
            let entries = random(seed);
            let verdict = search(&entries, 100_000);
            assert_eq!(verdict, plain(&entries), "seed {seed}");
            counts[usize::from(verdict == Verdict::Linearizable)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 1000), "{counts:?}");
    }

    #[test]
    fn unknown_operations_that_nobody_saw_do_not_multiply_the_search() {
        let entry = |number: usize, called, returned, role| Entry { number, called, returned, role };
        let mut entries = vec![entry(0, 1, Some(2), Role::Change { when: Absent, to: Some(0) })];
        for number in 1..=16 {
            let role = Role::Change { when: Present, to: Some(1000 + number) };
            entries.push(entry(number as usize, 3, None, role));
        }
        for number in 1..=200 {
            let role = Role::Change { when: Present, to: Some(number) };
            let called = 10 * u64::from(number);
            entries.push(entry(20 + number as usize, called, Some(called + 15), role));
        }
        entries.push(entry(900, 5000, Some(5001), Role::Observe(Is(200))));
        entries.push(entry(901, 6000, Some(6001), Role::Observe(Is(199))));
        let budget = 1_000_000;
        assert_eq!(search_all(&entries, budget), Verdict::Undecided);
        entries.pop();
        assert_eq!(search(&entries, budget), Verdict::Linearizable);
    }

    #[test]
    fn without_budget_nothing_is_decided() {
        let seen =
            |condition| Entry { number: 0, called: 1, returned: Some(2), role: Role::Observe(condition) };
        for budget in [0, 1, ACCEPTED] {
            assert_eq!(search(&[seen(Absent)], budget), Verdict::Undecided);
        }
        assert_eq!(search(&[seen(Absent)], ACCEPTED + 1), Verdict::Linearizable);
        assert_eq!(search(&[seen(Present)], 100), Verdict::Violated);
    }
}
