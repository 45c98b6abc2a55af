//! Hand-made histories and seeded random numbers, for the tests of the checks.

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{Call, Change, Event, History, Operation, Outcome, Refusal, Stream, Versioned, Watched};
use crate::kind::Kind;

/// A history under construction. Times are (called, returned), versions (value, revision).
#[derive(Clone, Default)]
pub(super) struct Run {
    pub(super) history: History,
}

impl Run {
    pub(super) fn add(
        &mut self,
        client: usize,
        call: Call,
        times: (u64, u64),
        outcome: Outcome,
    ) -> &mut Self {
        let (called, returned) = times;
        self.history.operations.push(Operation { client, call, called, returned, outcome });
        self
    }

    pub(super) fn create(
        &mut self,
        client: usize,
        key: &str,
        value: &str,
        times: (u64, u64),
        revision: u64,
    ) -> &mut Self {
        let call = Call::Create { key: key.into(), value: value.into() };
        self.add(client, call, times, Outcome::Written { revision })
    }

    pub(super) fn unknown_create(&mut self, client: usize, key: &str, value: &str, called: u64) -> &mut Self {
        let call = Call::Create { key: key.into(), value: value.into() };
        self.add(client, call, (called, 0), Outcome::Unknown)
    }

    pub(super) fn update(
        &mut self,
        client: usize,
        key: &str,
        expected: (&str, u64),
        value: &str,
        times: (u64, u64),
        revision: u64,
    ) -> &mut Self {
        self.add(client, update(key, expected, value), times, Outcome::Written { revision })
    }

    pub(super) fn unknown_update(
        &mut self,
        client: usize,
        key: &str,
        expected: (&str, u64),
        value: &str,
        called: u64,
    ) -> &mut Self {
        self.add(client, update(key, expected, value), (called, 0), Outcome::Unknown)
    }

    pub(super) fn delete(
        &mut self,
        client: usize,
        key: &str,
        expected: Option<(&str, u64)>,
        times: (u64, u64),
        revision: Option<u64>,
    ) -> &mut Self {
        let call = Call::Delete { key: key.into(), expected: expected.map(versioned) };
        self.add(client, call, times, Outcome::Deleted { revision })
    }

    pub(super) fn unknown_delete(&mut self, client: usize, key: &str, called: u64) -> &mut Self {
        self.add(client, Call::Delete { key: key.into(), expected: None }, (called, 0), Outcome::Unknown)
    }

    pub(super) fn refused(
        &mut self,
        client: usize,
        call: Call,
        refusal: Refusal,
        times: (u64, u64),
    ) -> &mut Self {
        self.add(client, call, times, Outcome::Refused(refusal))
    }

    pub(super) fn not_entered(&mut self, client: usize, call: Call, called: u64) -> &mut Self {
        self.add(client, call, (called, 0), Outcome::NotEntered)
    }

    pub(super) fn read(
        &mut self,
        client: usize,
        key: &str,
        found: Option<(&str, u64)>,
        times: (u64, u64),
    ) -> &mut Self {
        self.add(client, Call::Get { key: key.into() }, times, Outcome::Read(found.map(versioned)))
    }

    pub(super) fn list(
        &mut self,
        client: usize,
        revision: u64,
        found: &[(&str, &str, u64)],
        times: (u64, u64),
    ) -> &mut Self {
        let call = Call::List { kind: Kind::of(found.first().map_or("", |(key, ..)| key)) };
        self.add(client, call, times, Outcome::Listed { revision, objects: objects(found) })
    }

    /// Adds a put to the truth.
    pub(super) fn put(&mut self, key: &str, value: &str, revision: u64) -> &mut Self {
        let change = Change::Put { value: value.into() };
        self.history.truth.events.push(Event { revision, key: key.into(), change });
        self
    }

    /// Adds a deletion to the truth.
    pub(super) fn deleted(&mut self, key: &str, value: &str, revision: u64) -> &mut Self {
        let change = Change::Deleted { value: value.into() };
        self.history.truth.events.push(Event { revision, key: key.into(), change });
        self
    }

    /// Adds the next stream of a client, which delivers all of the truth so far.
    pub(super) fn watch(&mut self, client: usize, from: u64, reached: u64) -> &mut Self {
        let events = self.history.truth.events.iter();
        let events = events.filter(|e| e.revision > from && e.revision <= reached).cloned().collect();
        let stream = Stream { from, listed: None, events, reached };
        match self.history.watches.iter_mut().find(|watched| watched.client == client) {
            Some(watched) => watched.streams.push(stream),
            None => {
                self.history.watches.push(Watched { client, kind: Kind::ConfigMap, streams: vec![stream] })
            }
        }
        self
    }
}

pub(super) fn versioned((value, revision): (&str, u64)) -> Versioned {
    Versioned { revision, value: value.into() }
}

pub(super) fn update(key: &str, expected: (&str, u64), value: &str) -> Call {
    Call::Update { key: key.into(), expected: versioned(expected), value: value.into() }
}

pub(super) fn objects(found: &[(&str, &str, u64)]) -> BTreeMap<String, Versioned> {
    found.iter().map(|(key, value, revision)| ((*key).to_owned(), versioned((value, *revision)))).collect()
}

/// Asserts that some violation contains both texts.
#[track_caller]
pub(super) fn rejected(found: &[Violation], one: &str, other: &str) {
    let has = |violation: &&Violation| violation.what.contains(one) && violation.what.contains(other);
    assert!(found.iter().any(|v| has(&v)), "no violation with {one:?} and {other:?}: {found:#?}");
}

/// Random number generator xorshift64 (Marsaglia 2003).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }

    pub(super) fn pick<'a, T>(&mut self, some: &'a [T]) -> Option<&'a T> {
        (!some.is_empty()).then(|| &some[self.below(some.len())])
    }
}
