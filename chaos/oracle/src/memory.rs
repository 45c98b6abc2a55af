//! What a client knows, and the calls it draws from that. The clients of simulated and
//! live runs make them; `calls.rs` says how they are asked and what an answer proves.

use std::collections::BTreeMap;

use chaos_spec::experiment as spec;
use rand::Rng;
use rand::rngs::StdRng;

use crate::calls::KEY_PREFIX;
use crate::history::{Call, Outcome, Versioned};

/// What one client knows and draws its calls from.
pub struct Memory {
    /// All that is left to chance.
    pub random: StdRng,
    client: usize,
    /// What it last saw of each object.
    seen: BTreeMap<String, Versioned>,
    writes: u64,
}

impl Memory {
    /// A client that has seen nothing.
    pub fn new(client: usize, random: StdRng) -> Self {
        Self { random, client, seen: BTreeMap::new(), writes: 0 }
    }

    /// The next call, by the weights of the mix.
    pub fn next_call(&mut self, spec: &spec::Workload) -> Call {
        let key = format!("{KEY_PREFIX}{}", self.random.random_range(0..spec.keys));
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
            // One in three does not care which version it deletes.
            (Some(2), expected) => {
                Call::Delete { key, expected: expected.filter(|_| self.random.random_ratio(2, 3)) }
            }
            (Some(4), _) => Call::List,
            (Some(5), _) => Call::Patch { key, value: self.value() },
            (Some(6), _) => Call::Pages { limit: self.random.random_range(1..4) },
            (Some(7), _) => Call::ListAny,
            _ => Call::Get { key },
        }
    }

    /// A value that no other write has.
    fn value(&mut self) -> String {
        self.writes += 1;
        format!("{}-{}", self.client, self.writes)
    }

    /// What the next calls build on.
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
            (_, Outcome::Listed { objects, .. }) => self.seen.clone_from(objects),
            (call, Outcome::Deleted { .. } | Outcome::Read(None) | Outcome::Refused(_)) => {
                if let Some(key) = call.key() {
                    self.seen.remove(key);
                }
            }
            _ => {}
        }
    }
}
