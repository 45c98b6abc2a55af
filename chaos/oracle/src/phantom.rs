//! Checks that every value and deletion was written by a client. Every value in the truth, in an answer or in
//! a watch comes from a write of that key that could have had an effect and had been called by then, and
//! every deletion from a delete of its own. A write that was refused or never entered and still shows is
//! Jepsen's aborted read (G1a of Adya 1999, <https://jepsen.io/consistency/phenomena/g1a>). Called by
//! `check`.

use super::index::{Index, violation};
use super::{Violation, matching};
use crate::history::{History, Outcome, Versioned};

/// Name of this check in reports.
pub const CHECK: &str = "phantom";

/// A value that was seen in the truth, an answer or a watch.
struct Sighting<'a> {
    key: &'a str,
    value: &'a str,
    place: String,
    when: When,
}

/// What is known of the time by which a value was there.
enum When {
    /// It was in an answer that came at this time.
    Returned(u64),
    /// It was at this revision of the truth.
    Revision(u64),
    /// No time is known: watches carry no times.
    Any,
}

/// Returns the values and deletions that no client's write explains.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let mut sightings = in_truth(history);
    sightings.extend(in_answers(history, &index));
    sightings.extend(in_watches(history));
    let judged = sightings.iter().filter_map(|sighting| {
        let why = judge(&index, sighting)?;
        let Sighting { key, value, place, .. } = sighting;
        Some(violation(CHECK, format!("{place} shows {key} {value:?}, {why}")))
    });
    judged.chain(deletions(history, &index)).collect()
}

fn judge(index: &Index<'_>, sighting: &Sighting<'_>) -> Option<String> {
    let Some((number, writer)) = index.writer(sighting.value) else {
        return Some("which nobody wrote".to_owned());
    };
    let name = index.name(number);
    if writer.call.key() != Some(sighting.key) {
        return Some(format!("which was written to another key: {name}"));
    }
    if !writer.may_write() {
        return Some(format!("which certainly had no effect: {name}"));
    }
    match sighting.when {
        When::Returned(returned) if returned < writer.called => {
            Some(format!("which was called only afterwards: {name}"))
        }
        When::Revision(revision) => {
            let (floor, other) = index.floor(writer.called).filter(|(floor, _)| *floor >= revision)?;
            let other = index.name(other);
            Some(format!("which was called only when the store was at {floor}: {name} after {other}"))
        }
        _ => None,
    }
}

fn in_truth(history: &History) -> Vec<Sighting<'_>> {
    let events = history.truth.events.iter();
    events
        .map(|event| Sighting {
            key: &event.key,
            value: event.change.value(),
            place: format!("the truth at {}", event.revision),
            when: When::Revision(event.revision),
        })
        .collect()
}

fn in_answers<'a>(history: &'a History, index: &Index<'_>) -> Vec<Sighting<'a>> {
    let mut sightings = Vec::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let found: Vec<(&str, &Versioned)> = match &operation.outcome {
            Outcome::Read(Some(found)) => operation.call.key().map(|key| (key, found)).into_iter().collect(),
            Outcome::Listed { objects, .. } | Outcome::Shown { objects, .. } => {
                objects.iter().map(|(key, found)| (key.as_str(), found)).collect()
            }
            _ => continue,
        };
        sightings.extend(found.into_iter().map(|(key, found)| Sighting {
            key,
            value: &found.value,
            place: index.name(number),
            when: When::Returned(operation.returned),
        }));
    }
    sightings
}

fn in_watches(history: &History) -> Vec<Sighting<'_>> {
    let mut sightings = Vec::new();
    for watched in &history.watches {
        for (number, stream) in watched.streams.iter().enumerate() {
            let place = format!("stream {number} of client {}", watched.client);
            let listed = stream.listed.iter().flatten().map(|(key, found)| (key, found.value.as_str()));
            let events = stream.events.iter().map(|event| (&event.key, event.change.value()));
            sightings.extend(listed.chain(events).map(|(key, value)| Sighting {
                key,
                value,
                place: place.clone(),
                when: When::Any,
            }));
        }
    }
    sightings
}

fn deletions(history: &History, index: &Index<'_>) -> Vec<Violation> {
    let deletes = matching::deletes(history);
    let deletions = matching::deletions(history);
    let allowed: Vec<Vec<usize>> = deletions
        .iter()
        .map(|event| {
            let made = |delete: &usize| matching::made(index, deletes[*delete].1, event);
            (0..deletes.len()).filter(made).collect()
        })
        .collect();
    let without = matching::unmatched(&allowed, deletes.len());
    without
        .into_iter()
        .map(|left| {
            let event = deletions[left];
            let why = match allowed[left].as_slice() {
                [] => "no delete can have made it".to_owned(),
                some => {
                    let names: Vec<_> = some.iter().map(|&delete| index.name(deletes[delete].0)).collect();
                    format!("who can have made it made another: {}", names.join(", "))
                }
            };
            violation(CHECK, format!("the truth has a {event}, and {why}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, rejected};
    use super::*;
    use crate::history::{Call, Refusal};

    #[test]
    fn what_somebody_wrote_passes() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1);
        run.unknown_update(1, "a", ("a1", 1), "a2", 3).put("a", "a2", 2);
        run.read(0, "a", Some(("a2", 2)), (4, 5)).list(0, 2, &[("a", "a2", 2)], (6, 7));
        run.unknown_delete(1, "a", 8).deleted("a", "a2", 3);
        run.unknown_delete(2, "a", 8);
        run.watch(4, 0, 3);
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_value_nobody_wrote() {
        let mut run = Run::default();
        run.put("a", "ghost", 1);
        rejected(&check(&run.history), "the truth at 1", "nobody wrote");
        let mut run = Run::default();
        run.read(0, "a", Some(("ghost", 1)), (1, 2));
        rejected(&check(&run.history), "operation 0", "nobody wrote");
        let mut run = Run::default();
        run.list(0, 1, &[("a", "ghost", 1)], (1, 2));
        rejected(&check(&run.history), "operation 0", "nobody wrote");
        let mut run = Run::default();
        run.put("a", "ghost", 1).watch(7, 0, 1).history.truth.events.clear();
        rejected(&check(&run.history), "stream 0 of client 7", "nobody wrote");
    }

    #[test]
    fn a_value_under_another_key() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).read(0, "b", Some(("a1", 1)), (3, 4));
        rejected(&check(&run.history), "operation 1", "another key");
    }

    #[test]
    fn a_write_without_effect_that_shows() {
        let call = Call::Create { key: "a".into(), value: "a1".into() };
        let mut run = Run::default();
        run.not_entered(0, call.clone(), 1).put("a", "a1", 1);
        rejected(&check(&run.history), "the truth at 1", "no effect: operation 0");
        let mut run = Run::default();
        run.refused(0, call, Refusal::AlreadyExists, (1, 2)).read(1, "a", Some(("a1", 1)), (3, 4));
        rejected(&check(&run.history), "operation 1", "no effect: operation 0");
    }

    #[test]
    fn a_value_that_shows_before_its_write() {
        let mut run = Run::default();
        run.read(0, "a", Some(("a1", 1)), (1, 2)).create(1, "a", "a1", (3, 4), 1).put("a", "a1", 1);
        rejected(&check(&run.history), "operation 0", "called only afterwards: operation 1");
        let mut run = Run::default();
        run.create(0, "b", "b1", (1, 2), 5).put("b", "b1", 5);
        run.unknown_create(1, "a", "a1", 3).put("a", "a1", 4);
        rejected(&check(&run.history), "the truth at 4", "when the store was at 5");
    }

    #[test]
    fn a_deletion_without_a_delete() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1).deleted("a", "a1", 2);
        rejected(&check(&run.history), "deletion of a \"a1\"@2", "no delete can have made it");
        run.unknown_delete(1, "a", 1);
        assert_eq!(check(&run.history), []);
        run.create(0, "a", "a2", (3, 4), 3).put("a", "a2", 3).deleted("a", "a2", 4);
        rejected(&check(&run.history), "deletion of a \"a2\"@4", "made another: operation 1");
    }

    #[test]
    fn a_deletion_by_a_refused_delete() {
        let mut run = Run::default();
        run.create(0, "a", "a1", (1, 2), 1).put("a", "a1", 1).deleted("a", "a1", 2);
        run.refused(1, Call::Delete { key: "a".into(), expected: None }, Refusal::NotFound, (3, 4));
        rejected(&check(&run.history), "deletion of a", "no delete can have made it");
    }
}
