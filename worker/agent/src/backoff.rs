//! Exponential back-off by key, as client-go's `flowcontrol.Backoff`: used for crashing containers and failing image pulls.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Delays of one pod's worker.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: BTreeMap<String, Entry>,
    /// The last error of a key, for who explains why it waits.
    errors: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

impl Backoff {
    /// 10 s doubling to 5 min: kubelet's for containers and for images.
    pub fn kubelet() -> Self {
        Self {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
            entries: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// The current delay of a key.
    pub fn delay(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Until when `key` must wait if the event it waits after happened at `since`; `None` if it need not.
    pub fn waits_until(&self, key: &str, since: Instant, now: Instant) -> Option<Instant> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, since) {
            return None;
        }
        let until = since + entry.delay;
        (now < until).then_some(until)
    }

    /// Until when `key` must wait, counted from its last step.
    pub fn waits_since_step(&self, key: &str, now: Instant) -> Option<Instant> {
        self.waits_until(key, self.entries.get(key)?.updated, now)
    }

    /// One more attempt: the delay starts at 10 s, doubles, and starts anew after twice the maximum of calm.
    pub fn step(&mut self, key: &str, since: Instant, now: Instant) {
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, since) => (entry.delay * 2).min(self.max),
            _ => self.initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    /// Remembers why a key's last attempt failed.
    pub fn set_error(&mut self, key: &str, error: String) {
        self.errors.insert(key.to_owned(), error);
    }

    /// Why a key's last attempt failed.
    pub fn error(&self, key: &str) -> Option<&str> {
        self.errors.get(key).map(String::as_str)
    }

    /// Forgets a key.
    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
        self.errors.remove(key);
    }

    fn expired(&self, entry: &Entry, since: Instant) -> bool {
        since.saturating_duration_since(entry.updated) > self.max * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_five_minutes_and_reset_after_ten_minutes_of_calm() {
        let mut backoff = Backoff::kubelet();
        let mut now = Instant::now();
        assert!(backoff.waits_until("c", now, now).is_none(), "the first restart is at once");
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoff.step("c", now, now);
            assert_eq!(backoff.delay("c"), Duration::from_secs(expected));
        }
        let ended = now;
        assert_eq!(backoff.waits_until("c", ended, now), Some(ended + Duration::from_secs(300)));
        now += Duration::from_secs(301);
        assert!(backoff.waits_until("c", ended, now).is_none());
        now += Duration::from_secs(601);
        backoff.step("c", now, now);
        assert_eq!(backoff.delay("c"), Duration::from_secs(10));
    }
}
