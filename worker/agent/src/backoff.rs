//! Exponential back-off by key, like client-go's `flowcontrol.Backoff`: used for crashing containers and
//! failing image pulls.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Back-off delays of one pod, by key.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: BTreeMap<String, Entry>,
    /// Error of each key's last attempt, shown while the key waits.
    errors: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

impl Backoff {
    /// Creates kubelet's back-off for containers and images: 10 s, doubling to 5 min.
    pub fn kubelet() -> Self {
        Self {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
            entries: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// Returns the current delay of a key; zero if it has none.
    pub fn delay(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Returns the time until which `key` must wait after an event at `since`; `None` if it need not wait.
    pub fn waits_until(&self, key: &str, since: Instant, now: Instant) -> Option<Instant> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, since) {
            return None;
        }
        let until = since + entry.delay;
        (now < until).then_some(until)
    }

    /// Returns the time until which `key` must wait, counted from its last step; `None` if it need not wait.
    pub fn waits_since_step(&self, key: &str, now: Instant) -> Option<Instant> {
        self.waits_until(key, self.entries.get(key)?.updated, now)
    }

    /// Records one more attempt: the delay starts at the initial value, doubles, and is reset after a pause
    /// of twice the maximum.
    pub fn step(&mut self, key: &str, since: Instant, now: Instant) {
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, since) => (entry.delay * 2).min(self.max),
            _ => self.initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    /// Records the error of a key's last attempt.
    pub fn set_error(&mut self, key: &str, error: String) {
        self.errors.insert(key.to_owned(), error);
    }

    /// Returns the error of a key's last attempt.
    pub fn error(&self, key: &str) -> Option<&str> {
        self.errors.get(key).map(String::as_str)
    }

    /// Removes the delay and the error of a key.
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
