//! Checks that watches are exact: the guarantees that etcd's robustness tests require of its watch
//! (<https://etcd.io/docs/v3.6/learning/api_guarantees/#watch-apis>: ordered, unique, reliable, resumable,
//! bookmarkable) and that Kubernetes builds on
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>). The
//! guarantee "atomic" does not apply, since every change has its own revision. Called by `check`.
//!
//! A stream delivers exactly the truth's events after `from` up to `reached`, in order. The next stream of
//! the client resumes at `reached`, or lists anew at that revision or a later one. The last stream of a
//! client that watched until the end reaches the final revision, so a stream that delivers nothing is a
//! violation.

use super::Violation;
use super::index::{Index, violation};
use super::lists::differences;
use crate::history::{Event, History, Stream};
use crate::kind::Kind;

/// Name of this check in reports.
pub const CHECK: &str = "watches";

/// Returns where a watch differs from the truth.
pub fn check(history: &History) -> Vec<Violation> {
    let index = Index::new(history);
    let mut found = Vec::new();
    for watched in &history.watches {
        let mut before: Option<&Stream> = None;
        for (number, stream) in watched.streams.iter().enumerate() {
            let joint = before.and_then(|before| resumed(before, stream));
            let faults = joint.into_iter().chain(listed(&index, watched.kind, stream)).chain(delivered(
                history,
                watched.kind,
                stream,
            ));
            found.extend(faults.map(|fault| {
                let Stream { from, reached, .. } = stream;
                let place = format!("stream {number} of client {} ({from}..{reached})", watched.client);
                violation(CHECK, format!("{place}: {fault}"))
            }));
            before = Some(stream);
        }
    }
    found.extend(unfinished(history));
    found
}

/// Returns the watches that never reached the final revision.
fn unfinished(history: &History) -> Vec<Violation> {
    let Some(closing) = &history.closing else { return Vec::new() };
    let late = closing.clients.iter().filter_map(|client| {
        let streams = history.watches.iter().find(|watched| watched.client == *client);
        let last = streams.and_then(|watched| watched.streams.last());
        let how = match last {
            Some(stream) if stream.reached >= closing.revision => return None,
            Some(stream) => {
                format!("its last stream began after {} and reached {}", stream.from, stream.reached)
            }
            None => "it has no stream at all".to_owned(),
        };
        let revision = closing.revision;
        Some(violation(CHECK, format!("silent: client {client} never saw revision {revision}: {how}")))
    });
    late.collect()
}

/// Checks that a stream begins where the one before it ended; returns what is wrong.
fn resumed(before: &Stream, stream: &Stream) -> Option<String> {
    let Stream { from, listed, .. } = stream;
    let reached = before.reached;
    if *from < reached {
        let how = if listed.is_some() { "listed" } else { "resumed" };
        return Some(format!("rewound: {how} at {from} though {reached} had been seen"));
    }
    let gap = *from > reached && listed.is_none();
    gap.then(|| format!("skipped: resumed at {from} without a list, though only {reached} had been seen"))
}

fn listed(index: &Index<'_>, kind: Kind, stream: &Stream) -> Option<String> {
    let objects = stream.listed.as_ref()?;
    let differ = differences(objects, &index.state(kind, stream.from))?;
    Some(format!("the list is not the state at {}: {differ}", stream.from))
}

/// Returns the first error in what a stream delivered: later ones may only follow from it.
fn delivered(history: &History, kind: Kind, stream: &Stream) -> Option<String> {
    let Stream { from, events, reached, .. } = stream;
    if reached < from {
        return Some(format!("reached {reached}, before its own begin"));
    }
    let truth = history.truth.events.iter().filter(|e| e.revision > *from && e.revision <= *reached);
    let mut expected: Vec<&Event> = truth.filter(|e| Kind::of(&e.key) == kind).collect();
    // Events of a watch are ordered by revision, whatever `order.rs` finds in the truth.
    expected.sort_by_key(|event| event.revision);
    let mut expected = expected.into_iter();
    let mut last = *from;
    for (number, event) in events.iter().enumerate() {
        let revision = event.revision;
        if revision <= last {
            return Some(backwards(&events[..number], event, last));
        }
        if revision > *reached {
            return Some(format!("event {number}, {event}, is past what the client takes as seen"));
        }
        match expected.next() {
            Some(true_event) if true_event == event => last = revision,
            Some(lost) if lost.revision < revision => {
                return Some(format!("gap: {lost} is missing between {last} and event {number}, {event}"));
            }
            Some(other) if other.revision == revision => {
                return Some(format!("event {number} is {event}, in truth it was {other}"));
            }
            _ => return Some(format!("event {number}, {event}, is not in the truth")),
        }
    }
    expected.next().map(|lost| format!("gap: {lost} is missing at the end, though {reached} counts as seen"))
}

fn backwards(before: &[Event], event: &Event, last: u64) -> String {
    let number = before.len();
    if before.contains(event) {
        format!("duplicate: event {number}, {event}, had come before")
    } else if before.is_empty() {
        format!("rewound: event {number}, {event}, is not after {last}, where the watch began")
    } else {
        format!("reordered: event {number}, {event}, comes after revision {last}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Run, objects, rejected};
    use super::*;
    use crate::history::{Change, Closing};

    fn run() -> Run {
        let mut run = Run::default();
        run.put("a", "a1", 1).put("b", "b1", 2).put("a", "a2", 5).deleted("b", "b1", 6).put("c", "c1", 9);
        run
    }

    /// Returns the violations after `spoil` has changed a stream that delivered everything.
    fn spoiled(spoil: impl Fn(&mut Stream)) -> Vec<Violation> {
        let mut run = run();
        run.watch(7, 1, 9);
        assert_eq!(check(&run.history), []);
        spoil(&mut run.history.watches[0].streams[0]);
        check(&run.history)
    }

    #[test]
    fn exact_streams_pass() {
        let mut run = run();
        run.watch(7, 0, 2).watch(7, 2, 2).watch(7, 2, 7).watch(7, 7, 12).watch(8, 6, 9).watch(8, 11, 11);
        run.history.watches[1].streams[1].listed = Some(objects(&[("a", "a2", 5), ("c", "c1", 9)]));
        run.watch(9, 99, 99);
        assert_eq!(check(&run.history), []);
    }

    #[test]
    fn a_watch_that_is_silent_at_the_end() {
        let mut run = run();
        run.watch(7, 0, 9).watch(8, 0, 6);
        let closing = |clients: &[usize]| Some(Closing { revision: 9, clients: clients.to_vec() });
        run.history.closing = closing(&[7]);
        assert_eq!(check(&run.history), []);
        run.history.closing = closing(&[7, 8]);
        rejected(&check(&run.history), "silent: client 8", "its last stream began after 0 and reached 6");
        run.history.closing = closing(&[9]);
        rejected(&check(&run.history), "silent: client 9", "no stream at all");
        // The client resumed where the stream had ended, and nothing was delivered after that.
        run.watch(8, 6, 6);
        run.history.closing = closing(&[8]);
        rejected(&check(&run.history), "silent: client 8", "began after 6 and reached 6");
    }

    #[test]
    fn a_gap() {
        rejected(&spoiled(|s| drop(s.events.remove(0))), "stream 0 of client 7", "gap: put b \"b1\"@2");
        rejected(&spoiled(|s| drop(s.events.remove(1))), "stream 0", "gap: put a \"a2\"@5");
        rejected(&spoiled(|s| drop(s.events.pop())), "stream 0", "missing at the end");
        rejected(&spoiled(|s| s.events.clear()), "stream 0", "missing at the end");
    }

    #[test]
    fn a_bookmark_that_runs_ahead() {
        rejected(&spoiled(|s| s.events.truncate(2)), "stream 0", "gap: deletion of b \"b1\"@6");
    }

    #[test]
    fn a_duplicate_a_reorder_and_a_rewind() {
        rejected(&spoiled(|s| s.events.insert(1, s.events[1].clone())), "stream 0", "duplicate: event 2");
        rejected(&spoiled(|s| s.events.push(s.events[0].clone())), "stream 0", "duplicate: event 4");
        rejected(&spoiled(|s| s.events.swap(2, 3)), "stream 0", "gap: deletion of b");
        let moved = |s: &mut Stream| {
            let first = s.events.remove(0);
            s.events.insert(1, first);
        };
        rejected(&spoiled(moved), "stream 0", "gap: put b");
        rejected(&spoiled(|s| s.from = 2), "stream 0", "rewound: event 0");
    }

    #[test]
    fn an_event_out_of_order_that_was_not_seen_before() {
        let before = |s: &mut Stream| {
            let mut other = s.events[1].clone();
            other.revision = 2;
            s.events.insert(2, other);
        };
        rejected(&spoiled(before), "stream 0", "reordered: event 2");
    }

    #[test]
    fn an_event_that_differs_or_is_none() {
        let value = |s: &mut Stream| s.events[1].change = Change::Put { value: "x".into() };
        rejected(&spoiled(value), "stream 0", "event 1 is put a \"x\"@5, in truth it was put a \"a2\"@5");
        let kind = |s: &mut Stream| s.events[2].change = Change::Put { value: "b1".into() };
        rejected(&spoiled(kind), "stream 0", "in truth it was deletion of b");
        let key = |s: &mut Stream| s.events[3].key = "d".into();
        rejected(&spoiled(key), "stream 0", "in truth it was put c");
        rejected(&spoiled(|s| s.events[1].revision = 4), "stream 0", "is not in the truth");
    }

    #[test]
    fn an_end_that_contradicts_the_events() {
        rejected(&spoiled(|s| s.reached = 8), "stream 0", "past what the client takes as seen");
        rejected(&spoiled(|s| s.reached = 0), "stream 0", "before its own begin");
    }

    #[test]
    fn a_stream_that_resumes_at_the_wrong_place() {
        let mut early = run();
        early.watch(7, 0, 5).watch(7, 2, 9);
        rejected(&check(&early.history), "stream 1 of client 7", "rewound: resumed at 2 though 5");
        let mut late = run();
        late.watch(7, 0, 2).watch(7, 5, 9);
        rejected(&check(&late.history), "stream 1 of client 7", "skipped: resumed at 5 without a list");
        let mut behind = run();
        behind.watch(7, 0, 5).watch(7, 2, 9);
        behind.history.watches[0].streams[1].listed = Some(objects(&[("a", "a1", 1), ("b", "b1", 2)]));
        rejected(&check(&behind.history), "stream 1 of client 7", "rewound: listed at 2");
    }

    #[test]
    fn a_list_that_is_not_the_state_it_claims() {
        for listed in
            [&[("a", "a1", 1)][..], &[("a", "a2", 5), ("b", "b1", 2)], &[("a", "a1", 1), ("b", "b1", 6)]]
        {
            let mut run = run();
            run.watch(7, 2, 9);
            run.history.watches[0].streams[0].listed = Some(objects(listed));
            rejected(&check(&run.history), "stream 0 of client 7", "not the state at 2");
        }
    }
}
