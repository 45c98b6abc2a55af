//! Ways to spoil a correct run. Each changes one thing, if the run has it, and returns the checks that must
//! notice.

use super::super::fixtures::Random;
use crate::history::{Call, Change, Event, History, Operation, Outcome, Refusal, Stream, Versioned};

type Spoil = fn(&mut History, &mut Random) -> Option<&'static [&'static str]>;

/// All ways to spoil a run, with their names.
pub(super) const ALL: &[(&str, Spoil)] = &[
    ("a write is lost", lose_write),
    ("a deletion is lost", lose_deletion),
    ("all deletions of a key are lost", lose_deletions),
    ("a write is applied twice", apply_twice),
    ("a value is corrupted", corrupt),
    ("a write that never entered is there", never_entered),
    ("a refused write is acknowledged", acknowledge_refused),
    ("a deletion is there without a delete", delete_unasked),
    ("revisions of two changes are swapped", swap_revisions),
    ("a get is stale", stale_get),
    ("a get finds nothing", blind_get),
    ("a get has another revision", get_revision),
    ("a get sees the future", future_get),
    ("a list is stale", stale_list),
    ("a list lacks an object", short_list),
    ("a list is torn", torn_list),
    ("one version has two winners", two_winners),
    ("a conflict has no reason", false_conflict),
    ("a watch has a gap", watch_gap),
    ("a watch has a duplicate", watch_duplicate),
    ("a watch is reordered", watch_reordered),
    ("a watch has another value", watch_corrupt),
    ("a watch rewinds", watch_rewind),
    ("a watch resumes too late", watch_skip),
    ("a relist is torn", torn_relist),
];

fn operations(history: &History, like: impl Fn(&Operation) -> bool) -> Vec<usize> {
    let all = history.operations.iter().enumerate();
    all.filter(|(_, o)| like(o)).map(|(number, _)| number).collect()
}

fn written(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Written { .. })
}

fn writer<'a>(history: &'a History, value: &str) -> Option<&'a Operation> {
    history.operations.iter().find(|o| o.call.value() == Some(value))
}

fn last_revision(history: &History) -> u64 {
    history.truth.events.last().map_or(0, |event| event.revision)
}

fn deletion(event: &Event) -> bool {
    matches!(event.change, Change::Deleted { .. })
}

fn lose_write(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&operations(history, written))?;
    let value = history.operations[number].call.value()?.to_owned();
    history.truth.events.retain(|e| e.change.after() != Some(&value));
    Some(&["lost"])
}

fn lose_deletion(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let told = |o: &Operation| matches!(o.outcome, Outcome::Deleted { revision: Some(_) });
    let number = *random.pick(&operations(history, told))?;
    let Outcome::Deleted { revision: Some(revision) } = history.operations[number].outcome else {
        return None;
    };
    history.truth.events.retain(|e| e.revision != revision);
    Some(&["lost"])
}

fn lose_deletions(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let untold = |o: &Operation| matches!(o.outcome, Outcome::Deleted { revision: None });
    let number = *random.pick(&operations(history, untold))?;
    let key = history.operations[number].call.key()?.to_owned();
    history.truth.events.retain(|e| !deletion(e) || e.key != key);
    Some(&["lost"])
}

fn apply_twice(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&operations(history, written))?;
    let call = history.operations[number].call.clone();
    let change = Change::Put { value: call.value()?.to_owned() };
    let revision = last_revision(history) + 1;
    history.truth.events.push(Event { revision, key: call.key()?.to_owned(), change });
    Some(&["lost"])
}

fn corrupt(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = random.below(history.truth.events.len());
    let (Change::Put { value } | Change::Deleted { value }) = &mut history.truth.events[number].change;
    *value = "ghost".to_owned();
    Some(&["phantom", "watches"])
}

fn never_entered(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&operations(history, written))?;
    history.operations[number].outcome = Outcome::NotEntered;
    Some(&["phantom"])
}

fn acknowledge_refused(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let refused = |o: &Operation| matches!(o.outcome, Outcome::Refused(_)) && o.call.value().is_some();
    let number = *random.pick(&operations(history, refused))?;
    let revision = last_revision(history) + 1;
    history.operations[number].outcome = Outcome::Written { revision };
    Some(&["lost"])
}

fn delete_unasked(history: &mut History, _: &mut Random) -> Option<&'static [&'static str]> {
    let open = |key: &str| {
        let unknown = |o: &Operation| matches!(o.call, Call::Delete { .. }) && o.outcome == Outcome::Unknown;
        history.operations.iter().any(|o| unknown(o) && o.call.key() == Some(key))
    };
    let mut keys = ["a", "b", "c"].into_iter().filter(|key| !open(key));
    let last =
        keys.find_map(|key| history.truth.events.iter().rfind(|e| e.key == key && !deletion(e)))?.clone();
    let revision = last_revision(history) + 1;
    let change = Change::Deleted { value: last.change.value().to_owned() };
    history.truth.events.push(Event { revision, key: last.key, change });
    Some(&["phantom"])
}

fn swap_revisions(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let events = &mut history.truth.events;
    let first = random.below(events.len() - 1);
    let revision = events[first].revision;
    events[first].revision = events[first + 1].revision;
    events[first + 1].revision = revision;
    Some(&["order", "watches"])
}

/// Returns gets that follow an acknowledged update, each with the version that the update replaced.
fn overwritten(history: &History) -> Vec<(usize, Versioned)> {
    let mut found = Vec::new();
    for number in operations(history, |o| matches!(o.outcome, Outcome::Read(_))) {
        let get = &history.operations[number];
        found.extend(history.operations.iter().filter_map(|o| match &o.call {
            Call::Update { key, expected, .. } if written(o) && o.returned < get.called => {
                (Some(key.as_str()) == get.call.key()).then(|| (number, expected.clone()))
            }
            _ => None,
        }));
    }
    found
}

fn stale_get(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let (number, version) = random.pick(&overwritten(history))?.clone();
    history.operations[number].outcome = Outcome::Read(Some(version));
    Some(&["order", "linearizable"])
}

fn blind_get(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let lasting = operations(history, |get| {
        let Outcome::Read(Some(found)) = &get.outcome else { return false };
        let acknowledged =
            writer(history, &found.value).is_some_and(|w| written(w) && w.returned < get.called);
        let last = history.truth.events.iter().rfind(|e| Some(e.key.as_str()) == get.call.key());
        acknowledged && last.is_some_and(|e| e.revision == found.revision)
    });
    history.operations[*random.pick(&lasting)?].outcome = Outcome::Read(None);
    Some(&["order"])
}

fn get_revision(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let gets = operations(history, |o| matches!(o.outcome, Outcome::Read(Some(_))));
    let Outcome::Read(Some(found)) = &mut history.operations[*random.pick(&gets)?].outcome else {
        return None;
    };
    found.revision += 1;
    Some(&["lists"])
}

fn future_get(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let gets = operations(history, |o| matches!(o.outcome, Outcome::Read(_)));
    let number = *random.pick(&gets)?;
    let get = &history.operations[number];
    let later = history.operations.iter().find_map(|o| match o.outcome {
        Outcome::Written { revision } if o.called > get.returned && o.call.key() == get.call.key() => {
            Some(Versioned { revision, value: o.call.value()?.to_owned() })
        }
        _ => None,
    })?;
    history.operations[number].outcome = Outcome::Read(Some(later));
    Some(&["phantom", "order", "linearizable"])
}

fn lists(history: &History) -> Vec<usize> {
    let full = |o: &Operation| matches!(&o.outcome, Outcome::Listed { objects, .. } if !objects.is_empty());
    operations(history, full)
}

fn stale_list(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&lists(history))?;
    let called = history.operations[number].called;
    let kind = history.operations[number].call.kind();
    let known = history.operations.iter().find_map(|o| match o.outcome {
        Outcome::Written { revision } if o.returned < called => Some(revision),
        _ => None,
    })?;
    let past = super::super::index::Index::new(history).state(kind, known - 1);
    history.operations[number].outcome = Outcome::Listed { revision: known - 1, objects: past };
    Some(&["order"])
}

fn short_list(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&lists(history))?;
    let Outcome::Listed { objects, .. } = &mut history.operations[number].outcome else { return None };
    objects.pop_first();
    Some(&["lists"])
}

fn torn_list(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let number = *random.pick(&lists(history))?;
    let Outcome::Listed { revision, objects } = &mut history.operations[number].outcome else { return None };
    let mut later = history.truth.events.iter().filter(|e| e.revision > *revision && !deletion(e));
    let event = later.next()?;
    let version = Versioned { revision: event.revision, value: event.change.value().to_owned() };
    objects.insert(event.key.clone(), version);
    Some(&["lists"])
}

/// Repeats an acknowledged update as a later call of another client, with another outcome.
fn repeat(
    history: &mut History,
    random: &mut Random,
    expected: impl Fn(&Operation, &Versioned) -> Option<Versioned>,
    outcome: impl Fn(u64) -> Outcome,
) -> Option<()> {
    let latest = history.operations.iter().map(|o| o.returned.max(o.called)).max()?;
    let updates = operations(history, |o| written(o) && matches!(o.call, Call::Update { .. }));
    let first = &history.operations[*random.pick(&updates)?];
    let Call::Update { key, expected: before, .. } = &first.call else { return None };
    let expected = expected(first, before)?;
    let call = Call::Update { key: key.clone(), expected, value: "again".to_owned() };
    let outcome = outcome(last_revision(history) + 1);
    let again = Operation { client: 99, call, called: latest + 1, returned: latest + 2, outcome };
    history.operations.push(again);
    Some(())
}

fn two_winners(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    repeat(history, random, |_, before| Some(before.clone()), |revision| Outcome::Written { revision })?;
    Some(&["linearizable", "lost"])
}

fn false_conflict(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let truth = history.truth.clone();
    let known = history.operations.iter().filter_map(|operation| match operation.outcome {
        Outcome::Written { revision } | Outcome::Listed { revision, .. } => Some(revision),
        _ => None,
    });
    let known = known.max().unwrap_or_default();
    let current = |update: &Operation, _: &Versioned| {
        let last = truth.events.iter().rfind(|e| Some(e.key.as_str()) == update.call.key())?;
        // If a later change has no answer that tells of it, the conflict may have had a reason.
        if last.revision > known {
            return None;
        }
        Some(Versioned { revision: last.revision, value: last.change.after()?.to_owned() })
    };
    repeat(history, random, current, |_| Outcome::Refused(Refusal::Conflict))?;
    Some(&["order"])
}

fn stream<'a>(
    history: &'a mut History,
    random: &mut Random,
    like: impl Fn(&Stream) -> bool,
) -> Option<&'a mut Stream> {
    let watcher = random.below(history.watches.len());
    let streams = &mut history.watches[watcher].streams;
    let fit: Vec<usize> = (0..streams.len()).filter(|&number| like(&streams[number])).collect();
    random.pick(&fit).map(|&number| &mut streams[number])
}

fn watch_gap(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| !s.events.is_empty())?;
    stream.events.remove(random.below(stream.events.len()));
    Some(&["watches"])
}

fn watch_duplicate(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| !s.events.is_empty())?;
    let event = stream.events[random.below(stream.events.len())].clone();
    stream.events.push(event);
    Some(&["watches"])
}

fn watch_reordered(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| s.events.len() >= 2)?;
    let first = random.below(stream.events.len() - 1);
    stream.events.swap(first, first + 1);
    Some(&["watches"])
}

fn watch_corrupt(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| !s.events.is_empty())?;
    let number = random.below(stream.events.len());
    let (Change::Put { value } | Change::Deleted { value }) = &mut stream.events[number].change;
    *value = "ghost".to_owned();
    Some(&["watches", "phantom"])
}

fn watch_rewind(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| s.from > 0 && s.listed.is_none())?;
    stream.from -= 1;
    Some(&["watches"])
}

fn watch_skip(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| s.from > 0 && s.listed.is_none() && s.reached > s.from + 1)?;
    stream.from += 1;
    stream.events.retain(|e| e.revision > stream.from);
    Some(&["watches"])
}

fn torn_relist(history: &mut History, random: &mut Random) -> Option<&'static [&'static str]> {
    let stream = stream(history, random, |s| s.listed.as_ref().is_some_and(|listed| !listed.is_empty()))?;
    stream.listed.as_mut()?.pop_first();
    Some(&["watches"])
}
