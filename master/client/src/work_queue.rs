//! The work queue between handlers and reconcilers: a key waits in it at most once and is processed by one
//! worker at a time; a key added while it is processed is processed again afterwards. Failed keys come back
//! with growing delays, as in client-go. The length is bounded by the number of distinct keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure; doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest delay between attempts on a key that keeps failing.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A deduplicating, rate-limited queue of keys.
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Keys in `ready`, or to be put there when their worker is done.
    dirty: BTreeSet<T>,
    processing: BTreeSet<T>,
    failures: BTreeMap<T, u32>,
    later: BTreeSet<(Instant, T)>,
    due: BTreeMap<T, Instant>,
}

impl<T: Clone + Ord> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Ord> WorkQueue<T> {
    /// Creates an empty queue.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: BTreeSet::new(),
                processing: BTreeSet::new(),
                failures: BTreeMap::new(),
                later: BTreeSet::new(),
                due: BTreeMap::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// Queues `key` now.
    pub fn add(&self, key: T) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// Queues `key` after `delay`; the earlier of two such calls counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().add_at(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// Queues `key` after a delay that grows with each call until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = BACKOFF_MIN.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MAX);
        *failures += 1;
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.changed.notify_one();
    }

    /// Resets the retry delay of `key`.
    pub fn forget(&self, key: &T) {
        self.lock().failures.remove(key);
    }

    /// Waits for the next key. Call [`WorkQueue::done`] when it is processed. Safe to cancel.
    pub async fn next(&self) -> T {
        loop {
            let changed = self.changed.notified();
            let due = {
                let mut state = self.lock();
                state.release(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    let more = !state.ready.is_empty() || !state.later.is_empty();
                    drop(state);
                    if more {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.later.first().map(|(due, _)| *due)
            };
            match due {
                None => changed.await,
                Some(due) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// Ends the processing of `key`; it is ready again at once if it was added meanwhile.
    pub fn done(&self, key: &T) {
        let mut state = self.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Number of keys that are ready, without delayed ones.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Ord> State<T> {
    fn add(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: T, at: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= at => return,
            Some(due) => {
                let due = *due;
                self.later.remove(&(due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    fn release(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_worked_on_by_one_worker_at_a_time() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert!(queue.is_empty());
        queue.add("a");
        assert!(queue.is_empty(), "a key that is worked on must not be handed out again");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_later_and_later_until_forgotten() {
        let queue = WorkQueue::new();
        let mut delays = Vec::new();
        for _ in 0..4 {
            let before = Instant::now();
            queue.add_rate_limited(1);
            assert_eq!(queue.next().await, 1);
            queue.done(&1);
            delays.push(before.elapsed().as_millis());
        }
        assert!(delays.windows(2).all(|pair| pair[0] < pair[1]), "{delays:?}");
        queue.forget(&1);
        let before = Instant::now();
        queue.add_rate_limited(1);
        queue.next().await;
        assert!(before.elapsed() <= Duration::from_millis(6));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_delays_the_earlier_counts() {
        let queue = WorkQueue::new();
        let before = Instant::now();
        queue.add_after(1, Duration::from_secs(50));
        queue.add_after(1, Duration::from_secs(5));
        queue.add_after(1, Duration::from_secs(60));
        queue.next().await;
        assert_eq!(before.elapsed().as_secs(), 5);
        queue.done(&1);
        let again = tokio::time::timeout(Duration::from_secs(100), queue.next()).await;
        assert!(again.is_err(), "the later ones must be gone");
    }
}
