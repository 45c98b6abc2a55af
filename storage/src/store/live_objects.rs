//! The live objects by key, with counts per block of neighbouring keys, so that the number of keys in a
//! range is known without a walk over them: lists report how many objects remain while they hold the lock
//! that an apply needs. `read.rs` counts, `apply.rs` inserts and removes.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use crate::Object;

/// Maximum number of keys in a block; a larger block is split.
const BLOCK_MAX: usize = 512;

/// The live objects.
pub(crate) struct LiveObjects {
    by_key: BTreeMap<Arc<str>, Arc<Object>>,
    /// The first possible key of each block, with the block's number of objects. The first block begins
    /// with the empty key, so that every key belongs to a block.
    blocks: BTreeMap<Arc<str>, usize>,
}

impl LiveObjects {
    pub(crate) fn new(by_key: BTreeMap<Arc<str>, Arc<Object>>) -> Self {
        let mut blocks = BTreeMap::from([(Arc::from(""), by_key.len().min(BLOCK_MAX / 2))]);
        for (number, key) in by_key.keys().enumerate().step_by(BLOCK_MAX / 2).skip(1) {
            blocks.insert(key.clone(), (by_key.len() - number).min(BLOCK_MAX / 2));
        }
        Self { by_key, blocks }
    }

    /// Inserts an object; returns the object that had its key before.
    pub(crate) fn insert(&mut self, key: Arc<str>, object: Arc<Object>) -> Option<Arc<Object>> {
        let replaced = self.by_key.insert(key.clone(), object);
        if replaced.is_none()
            && let Some((first, count)) = self.blocks.range_mut::<str, _>(up_to(&key)).next_back()
        {
            *count += 1;
            if *count > BLOCK_MAX {
                let kept = *count / 2;
                if let Some((middle, _)) = self.by_key.range(first.clone()..).nth(kept) {
                    let moved = *count - kept;
                    *count = kept;
                    self.blocks.insert(middle.clone(), moved);
                }
            }
        }
        replaced
    }

    /// Removes an object; returns it with its key.
    pub(crate) fn remove_entry(&mut self, key: &str) -> Option<(Arc<str>, Arc<Object>)> {
        let removed = self.by_key.remove_entry(key)?;
        let block = self.blocks.range_mut::<str, _>(up_to(key)).next_back();
        if let Some(first) = block.map(|(first, count)| {
            *count -= 1;
            first.clone()
        }) {
            // Small neighbouring blocks are merged.
            let before = self.blocks.range::<str, _>((Bound::Unbounded, Bound::Excluded(&*first)));
            let before = before.map(|(before, _)| before.clone()).next_back();
            let next = self.blocks.range::<str, _>((Bound::Excluded(&*first), Bound::Unbounded)).next();
            if let Some(next) = next.map(|(next, _)| next.clone()) {
                self.merge(&first, &next);
            }
            if let Some(before) = before {
                self.merge(&before, &first);
            }
        }
        Some(removed)
    }

    /// Merges two neighbouring blocks if the result has room for more keys.
    fn merge(&mut self, first: &Arc<str>, second: &Arc<str>) {
        let counts = (self.blocks.get(first).copied(), self.blocks.get(second).copied());
        if let (Some(one), Some(other)) = counts
            && (one + other <= BLOCK_MAX / 2 || other == 0)
        {
            self.blocks.insert(first.clone(), one + other);
            self.blocks.remove(second);
        }
    }

    /// Counts the keys from `from` to before `end` (`None`: to the last). Walks over at most two blocks of
    /// keys.
    pub(crate) fn count(&self, from: Bound<&str>, end: Option<&str>) -> usize {
        let ends = |key: &str| end.is_some_and(|end| key >= end);
        let after = match from {
            Bound::Included(key) | Bound::Excluded(key) => Bound::Excluded(key),
            Bound::Unbounded => Bound::Unbounded,
        };
        let blocks = self.blocks.range::<str, _>((after, Bound::Unbounded));
        let mut blocks = blocks.take_while(|(first, _)| !ends(first)).peekable();
        let whole = blocks.peek().map(|(first, _)| &***first);
        let keys = self.by_key.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| &**key);
        let mut count = keys.take_while(|key| !ends(key) && whole.is_none_or(|whole| *key < whole)).count();
        while let Some((first, in_block)) = blocks.next() {
            count += if blocks.peek().is_some() {
                *in_block
            } else {
                self.by_key.range(first.clone()..).take_while(|(key, _)| !ends(key)).count()
            };
        }
        count
    }
}

/// Reads go to the map directly.
impl Deref for LiveObjects {
    type Target = BTreeMap<Arc<str>, Arc<Object>>;

    fn deref(&self) -> &Self::Target {
        &self.by_key
    }
}

/// Returns the range from the first key to `key`.
fn up_to(key: &str) -> (Bound<&str>, Bound<&str>) {
    (Bound::Unbounded, Bound::Included(key))
}

/// Returns the least string above all strings that begin with `prefix`; `None` if there is no such string.
pub(crate) fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Surrogates are no characters, so the character after U+D7FF is U+E000.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(key: &str) -> (Arc<str>, Arc<Object>) {
        let key: Arc<str> = key.into();
        (key.clone(), Arc::new(Object::new(key, Bytes::new(), 1, 1)))
    }

    /// Returns pseudo-random numbers, the same every time.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    #[test]
    fn counts_are_those_of_a_walk_whatever_was_inserted_and_removed() {
        let mut numbers = Numbers(7);
        let key = |number: u64| format!("/registry/core/k{}/{number:05}", number % 3);
        let mut objects = LiveObjects::new((0..3000).map(|number| object(&key(number * 3))).collect());
        for round in 0..12 {
            for _ in 0..2000 {
                let key = key(numbers.below(10_000));
                // The map grows at first and later shrinks to nothing.
                if numbers.below(12) < round {
                    objects.remove_entry(&key);
                } else {
                    let (key, object) = object(&key);
                    objects.insert(key, object);
                }
            }
            assert_eq!(objects.blocks.values().sum::<usize>(), objects.len());
            assert!(objects.blocks.values().all(|count| *count <= BLOCK_MAX));
            assert!(objects.blocks.len() <= objects.len() * 8 / BLOCK_MAX + 2, "{}", objects.blocks.len());
            for prefix in ["", "/registry/core/k1/", "/registry/core/k1/07", "/a", "/z"] {
                let end = end_of_prefix(prefix);
                let from = key(numbers.below(10_000));
                for from in [Bound::Included(prefix), Bound::Excluded(&*from), Bound::Included(&*from)] {
                    let keys = objects.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| key);
                    let before_end = |key: &&Arc<str>| end.as_deref().is_none_or(|end| &***key < end);
                    let walked = keys.take_while(before_end).count();
                    assert_eq!(objects.count(from, end.as_deref()), walked, "{prefix} {from:?}");
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_above_what_begins_with_it_and_no_more() {
        assert_eq!(end_of_prefix("/pods/").as_deref(), Some("/pods0"));
        assert_eq!(end_of_prefix("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(end_of_prefix("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(end_of_prefix(""), None);
    }
}
