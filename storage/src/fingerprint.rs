//! A digest of the replicated state that is updated with every change instead of being recomputed: the sum
//! of one hash per record. Replicas compare it at the same log entry (`consensus/compare.rs`). On disk it
//! is stored beside the state, so that a missing or outdated record is noticed when the state is opened.
//!
//! Sums of hashes detect accidental differences, which is their purpose here ("A New Paradigm for
//! Collision-free Hashing", Bellare and Micciancio, 1997). They do not protect against forged records;
//! encryption does.

use serde::{Deserialize, Serialize};

use crate::recent_outcomes::Outcomes;
use crate::snapshot::digest_object;
use crate::{Object, Result, Revision, codec};

/// The sum of the hashes of all records, in four lanes of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Fingerprint([u64; 4]);

/// The fingerprint after one log entry; the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log index of the entry.
    pub index: u64,
    /// The revision after the entry.
    pub revision: Revision,
    /// The fingerprint of objects and remembered outcomes after the entry.
    pub fingerprint: Fingerprint,
}

impl Fingerprint {
    /// Returns the fingerprint's bytes, for the wire.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (part, lane) in out.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&lane.to_le_bytes());
        }
        out
    }

    pub(crate) fn add_object(&mut self, object: &Object) {
        self.change(&object_hash(object), u64::wrapping_add);
    }

    pub(crate) fn remove_object(&mut self, object: &Object) {
        self.change(&object_hash(object), u64::wrapping_sub);
    }

    pub(crate) fn add_outcomes(&mut self, index: u64, outcomes: &Outcomes) -> Result<()> {
        self.change(&outcomes_hash(index, outcomes)?, u64::wrapping_add);
        Ok(())
    }

    pub(crate) fn remove_outcomes(&mut self, index: u64, outcomes: &Outcomes) -> Result<()> {
        self.change(&outcomes_hash(index, outcomes)?, u64::wrapping_sub);
        Ok(())
    }

    fn change(&mut self, hash: &blake3::Hash, change: impl Fn(u64, u64) -> u64) {
        for (lane, part) in self.0.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(part);
            *lane = change(*lane, u64::from_le_bytes(bytes));
        }
    }
}

fn object_hash(object: &Object) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"o");
    digest_object(&mut hasher, object);
    hasher.finalize()
}

fn outcomes_hash(index: u64, outcomes: &Outcomes) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"r").update(&index.to_le_bytes()).update(&codec::encode("outcomes", outcomes)?);
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(key: &str, value: &'static str, revision: Revision) -> Object {
        Object::new(key.into(), Bytes::from_static(value.as_bytes()), 1, revision)
    }

    #[test]
    fn the_order_of_changes_does_not_count_and_every_part_of_a_record_does() {
        let (a, b) = (object("/a", "1", 1), object("/b", "1", 2));
        let mut one = Fingerprint::default();
        let mut two = Fingerprint::default();
        one.add_object(&a);
        one.add_object(&b);
        two.add_object(&b);
        two.add_object(&object("/c", "1", 3));
        two.add_object(&a);
        assert_ne!(one, two);
        two.remove_object(&object("/c", "1", 3));
        assert_eq!(one, two);
        for other in [object("/aa", "1", 1), object("/a", "2", 1), object("/a", "1", 2)] {
            let mut changed = one;
            changed.remove_object(&a);
            changed.add_object(&other);
            assert_ne!(changed, one, "{other:?}");
        }
    }
}
