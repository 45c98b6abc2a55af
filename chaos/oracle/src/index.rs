//! Look-ups in a history that several checks share: the truth by revision and by key, the writer of a value,
//! and the revisions known at a moment. Every check builds its own.

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{Call, Event, History, Operation, Outcome, Versioned};
use crate::kind::Kind;

/// Look-ups in a history.
pub(super) struct Index<'a> {
    history: &'a History,
    by_revision: BTreeMap<u64, &'a Event>,
    by_key: BTreeMap<&'a str, Vec<&'a Event>>,
    puts: BTreeMap<&'a str, &'a Event>,
    writers: BTreeMap<&'a str, usize>,
    /// Revisions known from answers: (returned, highest revision answered until then, index of that
    /// operation).
    known: Vec<(u64, u64, usize)>,
    /// Revisions that calls reached: (called, lowest revision that this or a later call reached, index of
    /// that operation), latest call first.
    begun: Vec<(u64, u64, usize)>,
}

impl<'a> Index<'a> {
    /// Builds the look-ups for a history.
    pub(super) fn new(history: &'a History) -> Self {
        let mut index = Self {
            history,
            by_revision: BTreeMap::new(),
            by_key: BTreeMap::new(),
            puts: BTreeMap::new(),
            writers: BTreeMap::new(),
            known: Vec::new(),
            begun: Vec::new(),
        };
        for event in &history.truth.events {
            index.by_revision.entry(event.revision).or_insert(event);
            index.by_key.entry(event.key.as_str()).or_default().push(event);
            if let Some(value) = event.change.after() {
                index.puts.entry(value).or_insert(event);
            }
        }
        for (number, operation) in history.operations.iter().enumerate() {
            if let Some(value) = operation.call.value() {
                index.writers.entry(value).or_insert(number);
            }
        }
        index.known = known(history);
        index.begun = index.begun();
        index
    }

    /// Returns the change at a revision, the first one if the truth has several.
    pub(super) fn at(&self, revision: u64) -> Option<&'a Event> {
        self.by_revision.get(&revision).copied()
    }

    /// Returns the change that put a value.
    pub(super) fn put(&self, value: &str) -> Option<&'a Event> {
        self.puts.get(value).copied()
    }

    /// Returns all changes of a key.
    pub(super) fn of(&self, key: &str) -> &[&'a Event] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns the operation whose call was to write a value, with its index.
    pub(super) fn writer(&self, value: &str) -> Option<(usize, &'a Operation)> {
        self.writers.get(value).map(|&number| (number, &self.history.operations[number]))
    }

    /// Returns the objects of a kind at a revision, by key.
    pub(super) fn state(&self, kind: Kind, revision: u64) -> BTreeMap<String, Versioned> {
        let mut state = BTreeMap::new();
        for (key, events) in self.by_key.iter().filter(|(key, _)| Kind::of(key) == kind) {
            let last = events.iter().rfind(|event| event.revision <= revision);
            if let Some((event, value)) = last.and_then(|event| Some((event, event.change.after()?))) {
                let version = Versioned { revision: event.revision, value: value.to_owned() };
                state.insert((*key).to_owned(), version);
            }
        }
        state
    }

    /// Returns the highest revision that any client had been told before this moment, and the operation that
    /// told it: a call made now cannot have a lower one.
    pub(super) fn floor(&self, called: u64) -> Option<(u64, usize)> {
        let before = self.known.partition_point(|(returned, ..)| *returned < called);
        before.checked_sub(1).map(|last| (self.known[last].1, self.known[last].2))
    }

    /// Returns the lowest revision of the operations called after this moment, and the operation that has it:
    /// an operation that has returned by now has no higher revision, and a lower one if the later operation
    /// is a write.
    pub(super) fn ceiling(&self, returned: u64) -> Option<(u64, usize)> {
        let after = self.begun.partition_point(|(called, ..)| *called > returned);
        after.checked_sub(1).map(|last| (self.begun[last].1, self.begun[last].2))
    }

    /// Describes an operation with its index, for the text of a violation.
    pub(super) fn name(&self, number: usize) -> String {
        format!("operation {number} ({})", self.history.operations[number])
    }

    fn begun(&self) -> Vec<(u64, u64, usize)> {
        let mut begun: Vec<_> = self
            .history
            .operations
            .iter()
            .enumerate()
            .filter_map(|(number, o)| Some((o.called, self.upper(o)?, number)))
            .collect();
        begun.sort_unstable_by(|a, b| b.cmp(a));
        keep_extreme(&mut begun, |new, old| new < old);
        begun
    }

    /// Returns a revision that no operation which returned before this one was called can exceed.
    fn upper(&self, operation: &Operation) -> Option<u64> {
        match &operation.outcome {
            Outcome::Written { revision } | Outcome::Deleted { revision: Some(revision) } => Some(*revision),
            Outcome::Listed { revision, .. } => Some(*revision),
            Outcome::Unknown => Some(self.put(operation.call.value()?)?.revision),
            _ => None,
        }
    }
}

/// Creates a violation of a check.
pub(super) fn violation(check: &'static str, what: String) -> Violation {
    Violation { check, what }
}

/// Returns whether an operation is a delete that may have taken effect.
pub(super) fn may_delete(operation: &Operation) -> bool {
    matches!(operation.call, Call::Delete { .. }) && operation.may_write()
}

fn known(history: &History) -> Vec<(u64, u64, usize)> {
    let mut known: Vec<_> = history
        .operations
        .iter()
        .enumerate()
        .filter_map(|(number, o)| Some((o.returned, lower(&o.outcome)?, number)))
        .collect();
    known.sort_unstable();
    keep_extreme(&mut known, |new, old| new > old);
    known
}

/// Returns a revision that the store had certainly reached when this was answered.
fn lower(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Written { revision } | Outcome::Deleted { revision: Some(revision) } => Some(*revision),
        Outcome::Listed { revision, .. } | Outcome::Shown { revision, .. } => Some(*revision),
        Outcome::Read(Some(found)) => Some(found.revision),
        _ => None,
    }
}

/// Replaces each entry's revision by the most extreme one up to that entry.
fn keep_extreme(entries: &mut [(u64, u64, usize)], better: impl Fn(u64, u64) -> bool) {
    for i in 1..entries.len() {
        let (_, revision, number) = entries[i - 1];
        if !better(entries[i].1, revision) {
            (entries[i].1, entries[i].2) = (revision, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Run;
    use super::*;

    #[test]
    fn the_state_is_that_of_the_revision() {
        let mut run = Run::default();
        run.put("a", "a1", 1).put("b", "b1", 2).put("a", "a2", 3).deleted("b", "b1", 4);
        let index = Index::new(&run.history);
        let values = |revision| -> Vec<_> {
            index.state(Kind::ConfigMap, revision).into_values().map(|v| v.value).collect()
        };
        assert_eq!(values(0), [""; 0]);
        assert_eq!(values(2), ["a1", "b1"]);
        assert_eq!(values(3), ["a2", "b1"]);
        assert_eq!(values(9), ["a2"]);
    }

    #[test]
    fn floor_and_ceiling_are_those_of_the_moment() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (10, 20), 5).create(1, "b", "b1", (12, 15), 7);
        run.create(2, "c", "c1", (30, 40), 6).read(3, "d", Some(("d1", 8)), (41, 42));
        let index = Index::new(&run.history);
        assert_eq!(index.floor(15), None);
        assert_eq!(index.floor(16), Some((7, 1)));
        assert_eq!(index.floor(25), Some((7, 1)));
        assert_eq!(index.floor(42), Some((7, 1)));
        assert_eq!(index.floor(43), Some((8, 3)));
        assert_eq!(index.ceiling(5), Some((5, 0)));
        assert_eq!(index.ceiling(11), Some((6, 2)));
        assert_eq!(index.ceiling(12), Some((6, 2)));
        assert_eq!(index.ceiling(30), None);
    }
}
