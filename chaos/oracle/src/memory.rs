//! What a client knows, and the calls that it draws from that. Simulated and live clients use it; `calls.rs`
//! converts the calls to requests and the answers to outcomes.

use std::collections::BTreeMap;

use chaos_spec::experiment as spec;
use rand::Rng;
use rand::rngs::StdRng;

use crate::calls::KEY_PREFIX;
use crate::history::{Call, Outcome, Versioned};
use crate::kind::Kind;

/// A client's knowledge, from which it draws its calls.
pub struct Memory {
    /// Random numbers for all choices.
    pub random: StdRng,
    client: usize,
    /// Kinds of the objects, which the objects' numbers have in turn.
    kinds: &'static [Kind],
    /// Version of each object that the client has seen last.
    seen: BTreeMap<String, Versioned>,
    writes: u64,
}

impl Memory {
    /// Creates the memory of a client that has seen nothing and works on objects of some kinds.
    pub fn new(client: usize, kinds: &'static [Kind], random: StdRng) -> Self {
        Self { random, client, kinds, seen: BTreeMap::new(), writes: 0 }
    }

    /// Draws the next call, by the weights of the mix.
    pub fn next_call(&mut self, spec: &spec::Workload) -> Call {
        let number = self.random.random_range(0..spec.keys);
        let kind = self.kinds[number as usize % self.kinds.len()];
        let key = kind.key(&format!("{KEY_PREFIX}{number}"));
        let seen = self.seen.get(&key).cloned();
        let mix = &spec.mix;
        let weights =
            [mix.create, mix.update, mix.delete, mix.get, mix.list, mix.patch, mix.page, mix.any_version];
        let mut draw = self.random.random_range(0..weights.iter().sum::<u32>().max(1));
        let drawn = weights.iter().position(|weight| match draw.checked_sub(*weight) {
            Some(rest) => {
                draw = rest;
                false
            }
            None => true,
        });
        match (drawn, seen) {
            (Some(0), _) | (Some(1), None) => Call::Create { key, value: self.value() },
            (Some(1), Some(expected)) => Call::Update { key, expected, value: self.value() },
            // One delete in three has no precondition.
            (Some(2), expected) => {
                Call::Delete { key, expected: expected.filter(|_| self.random.random_ratio(2, 3)) }
            }
            (Some(4), _) => Call::List { kind },
            (Some(5), _) => Call::Patch { key, value: self.value() },
            (Some(6), _) => Call::Pages { kind, limit: self.random.random_range(1..4) },
            (Some(7), _) => Call::ListAny { kind },
            _ => Call::Get { key },
        }
    }

    /// Returns a value that no other write has.
    fn value(&mut self) -> String {
        self.writes += 1;
        format!("{}-{}", self.client, self.writes)
    }

    /// Updates the client's knowledge by the outcome of a call.
    pub fn learn(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (
                Call::Create { key, value } | Call::Update { key, value, .. } | Call::Patch { key, value },
                Outcome::Written { revision },
            ) => {
                let version = Versioned { revision: *revision, value: value.clone() };
                self.seen.insert(key.clone(), version);
            }
            (Call::Get { key }, Outcome::Read(Some(found))) => {
                self.seen.insert(key.clone(), found.clone());
            }
            (call, Outcome::Listed { objects, .. }) => {
                self.seen.retain(|key, _| Kind::of(key) != call.kind());
                self.seen.extend(objects.clone());
            }
            (call, Outcome::Deleted { .. } | Outcome::Read(None) | Outcome::Refused(_)) => {
                if let Some(key) = call.key() {
                    self.seen.remove(key);
                }
            }
            _ => {}
        }
    }
}
