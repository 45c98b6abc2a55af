//! Writes that a controller has requested and the caches do not show yet. Until they do, the controller
//! must not count again, or it would create and delete the same pods twice. Fed by `replicaset.rs` and its
//! handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use master_client::ObjectKey;
use tokio::time::Instant;

/// Age at which an expectation is dropped: its event was missed for good.
const TIMEOUT: Duration = Duration::from_secs(300);

struct Expectation {
    creations: usize,
    /// Keys of pods, so that a deletion seen twice counts once.
    deletions: BTreeSet<ObjectKey>,
    since: Instant,
}

/// Expectations of one controller, by the keys of its objects.
#[derive(Default)]
pub(crate) struct Expectations {
    expected: Mutex<BTreeMap<ObjectKey, Expectation>>,
}

impl Expectations {
    /// Whether everything requested was seen, or has timed out.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        self.lock().get(key).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty()) || expected.since.elapsed() > TIMEOUT
        })
    }

    /// Records that `count` creations are about to be requested.
    pub fn expect_creations(&self, key: &ObjectKey, count: usize) {
        let expected = Expectation { creations: count, deletions: BTreeSet::new(), since: Instant::now() };
        self.lock().insert(key.clone(), expected);
    }

    /// Records that deletions of these pods are about to be requested.
    pub fn expect_deletions(&self, key: &ObjectKey, pods: BTreeSet<ObjectKey>) {
        let expected = Expectation { creations: 0, deletions: pods, since: Instant::now() };
        self.lock().insert(key.clone(), expected);
    }

    /// Records that `count` creations were seen, or failed.
    pub fn creations_observed(&self, key: &ObjectKey, count: usize) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(count);
        }
    }

    /// Records that the deletion of `pod` was seen, or failed.
    pub fn deletion_observed(&self, key: &ObjectKey, pod: &ObjectKey) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.deletions.remove(pod);
        }
    }

    /// Removes the expectations of a deleted object.
    pub fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Expectation>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    #[tokio::test(start_paused = true)]
    async fn creations_hold_up_until_all_are_seen() {
        let expectations = Expectations::default();
        assert!(expectations.satisfied(&key("rs")));
        expectations.expect_creations(&key("rs"), 2);
        expectations.creations_observed(&key("rs"), 1);
        assert!(!expectations.satisfied(&key("rs")));
        expectations.creations_observed(&key("rs"), 1);
        assert!(expectations.satisfied(&key("rs")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_seen_twice_counts_once() {
        let expectations = Expectations::default();
        expectations.expect_deletions(&key("rs"), [key("a"), key("b")].into());
        expectations.deletion_observed(&key("rs"), &key("a"));
        expectations.deletion_observed(&key("rs"), &key("a"));
        assert!(!expectations.satisfied(&key("rs")));
        expectations.deletion_observed(&key("rs"), &key("b"));
        assert!(expectations.satisfied(&key("rs")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expectation_nobody_fulfils_is_given_up() {
        let expectations = Expectations::default();
        expectations.expect_creations(&key("rs"), 1);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&key("rs")));
    }
}
