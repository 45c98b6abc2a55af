//! The queue of pods that wait for a node: ready ones by priority and age; failed ones in back-off; and
//! unschedulable ones, which come back when a change could help them. Filled by the handlers in `lib.rs`,
//! emptied by its scheduling loop. Bounded by the number of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use master_client::ObjectKey;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::snapshot::PodInfo;

/// First back-off after a failed attempt; doubles with each further failure.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Time after which an unschedulable pod is tried again without any change.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Order of ready pods: higher priority first, then earlier arrival.
type Rank = (std::cmp::Reverse<i32>, u64, ObjectKey);

/// A pod taken out to be scheduled.
pub(crate) struct Attempt {
    pub pod: Arc<PodInfo>,
    /// Number of changes of the cluster seen when the pod was taken out.
    events: u64,
}

#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<ObjectKey, WaitingPod>,
    active: BTreeSet<Rank>,
    /// Keys of unschedulable pods in `waiting`, so that a change wakes them without a look at all others.
    unschedulable: BTreeSet<ObjectKey>,
    /// Ends of back-offs and of the longest waits of unschedulable pods.
    timers: BTreeSet<(Instant, ObjectKey)>,
    arrivals: u64,
    /// Number of changes of the cluster, by which a change during an attempt is noticed.
    events: u64,
}

struct WaitingPod {
    pod: Arc<PodInfo>,
    arrival: u64,
    attempts: u32,
    place: QueuePlace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum QueuePlace {
    Active,
    InFlight,
    Backoff { until: Instant },
    Unschedulable { backoff_until: Instant, until: Instant },
}

impl Queue {
    /// Adds a new pod, or updates one that waits.
    pub fn put(&self, pod: Arc<PodInfo>) {
        let mut state = self.lock();
        let state = &mut *state;
        let key = pod.key.clone();
        match state.waiting.get_mut(&key) {
            Some(waiting) if waiting.pod.pod.metadata.uid == pod.pod.metadata.uid => {
                let helped = could_help(&waiting.pod, &pod);
                state.active.remove(&rank(waiting));
                waiting.pod = pod;
                if waiting.place == QueuePlace::Active {
                    state.active.insert(rank(waiting));
                } else if helped && matches!(waiting.place, QueuePlace::Unschedulable { .. }) {
                    state.wake(&key);
                }
            }
            _ => {
                state.remove(&key);
                state.arrivals += 1;
                let waiting =
                    WaitingPod { pod, arrival: state.arrivals, attempts: 0, place: QueuePlace::Active };
                state.active.insert(rank(&waiting));
                state.waiting.insert(key, waiting);
            }
        }
        self.changed.notify_one();
    }

    /// Removes a pod that is gone or has a node.
    pub fn remove(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    /// Wakes unschedulable pods after a change that could help them.
    pub fn cluster_changed(&self) {
        let mut state = self.lock();
        state.events += 1;
        let unschedulable = std::mem::take(&mut state.unschedulable);
        for key in &unschedulable {
            state.wake(key);
        }
        drop(state);
        if !unschedulable.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Waits for the next pod to schedule. Safe to cancel.
    pub async fn next(&self) -> Attempt {
        loop {
            let changed = self.changed.notified();
            let due = {
                let mut state = self.lock();
                state.release(Instant::now());
                if let Some(attempt) = state.take() {
                    return attempt;
                }
                state.timers.first().map(|(due, _)| *due)
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

    /// Puts a pod back for which no node was suitable.
    pub fn unschedulable(&self, attempt: &Attempt) {
        let mut state = self.lock();
        let missed = state.events != attempt.events;
        state.fail(&attempt.pod, !missed);
        drop(state);
        self.changed.notify_one();
    }

    /// Puts a pod back whose attempt failed for another reason than the cluster's state, such as a failed
    /// binding.
    pub fn failed(&self, pod: &PodInfo) {
        self.lock().fail(pod, false);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Attempt> {
        let (_, _, key) = self.active.pop_first()?;
        let waiting = self.waiting.get_mut(&key)?;
        waiting.place = QueuePlace::InFlight;
        waiting.attempts += 1;
        Some(Attempt { pod: waiting.pod.clone(), events: self.events })
    }

    fn fail(&mut self, pod: &PodInfo, wait_for_change: bool) {
        let Some(waiting) = self.waiting.get_mut(&pod.key) else { return };
        if waiting.place != QueuePlace::InFlight || waiting.pod.pod.metadata.uid != pod.pod.metadata.uid {
            return;
        }
        let doublings = waiting.attempts.saturating_sub(1).min(10);
        let backoff_until = Instant::now() + BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
        if wait_for_change {
            let until = Instant::now() + UNSCHEDULABLE_MAX;
            waiting.place = QueuePlace::Unschedulable { backoff_until, until };
            self.timers.insert((until, pod.key.clone()));
            self.unschedulable.insert(pod.key.clone());
        } else {
            waiting.place = QueuePlace::Backoff { until: backoff_until };
            self.timers.insert((backoff_until, pod.key.clone()));
        }
    }

    /// Moves an unschedulable pod to the end of its back-off, or to the ready pods if that has passed.
    fn wake(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        let QueuePlace::Unschedulable { backoff_until, until } = waiting.place else { return };
        self.unschedulable.remove(key);
        self.timers.remove(&(until, key.clone()));
        if backoff_until <= Instant::now() {
            waiting.place = QueuePlace::Active;
            self.active.insert(rank(waiting));
        } else {
            waiting.place = QueuePlace::Backoff { until: backoff_until };
            self.timers.insert((backoff_until, key.clone()));
        }
    }

    fn release(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = self.timers.pop_first() else { return };
            self.unschedulable.remove(&key);
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.place = QueuePlace::Active;
                self.active.insert(rank(waiting));
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.waiting.remove(key) else { return };
        self.unschedulable.remove(key);
        match waiting.place {
            QueuePlace::Active => {
                self.active.remove(&rank(&waiting));
            }
            QueuePlace::InFlight => {}
            QueuePlace::Backoff { until } | QueuePlace::Unschedulable { until, .. } => {
                self.timers.remove(&(until, key.clone()));
            }
        }
    }
}

fn rank(waiting: &WaitingPod) -> Rank {
    let priority = waiting.pod.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    (std::cmp::Reverse(priority), waiting.arrival, waiting.pod.key.clone())
}

/// Whether a change of the pod itself could make it schedulable; a change of status alone cannot.
fn could_help(old: &PodInfo, new: &PodInfo) -> bool {
    old.pod.spec != new.pod.spec || old.pod.metadata.labels != new.pod.metadata.labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::json;

    fn with_priority(name: &str, priority: i32) -> Arc<PodInfo> {
        pod(name, json!({}), json!({"spec": {"priority": priority}}))
    }

    #[tokio::test(start_paused = true)]
    async fn higher_priority_comes_first_and_then_who_came_first() {
        let queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0)] {
            queue.put(with_priority(name, priority));
        }
        let mut order = Vec::new();
        for _ in 0..3 {
            order.push(queue.next().await.pod.key.name.clone());
        }
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_fits_nowhere_waits_for_a_change() {
        let queue = Queue::default();
        queue.put(with_priority("a", 0));
        let attempt = queue.next().await;
        queue.unschedulable(&attempt);
        let waited = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(waited.is_err(), "nothing changed, so nothing may be tried");
        queue.cluster_changed();
        assert_eq!(queue.next().await.pod.key.name, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_attempt_is_not_lost() {
        let queue = Queue::default();
        queue.put(with_priority("a", 0));
        let attempt = queue.next().await;
        queue.cluster_changed();
        queue.unschedulable(&attempt);
        let before = Instant::now();
        assert_eq!(queue.next().await.pod.key.name, "a");
        assert_eq!(before.elapsed(), BACKOFF_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_pod_is_never_handed_out() {
        let queue = Queue::default();
        queue.put(with_priority("a", 0));
        let attempt = queue.next().await;
        queue.failed(&attempt.pod);
        queue.remove(&attempt.pod.key);
        assert!(tokio::time::timeout(Duration::from_secs(1000), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_waits_too_long_is_tried_again() {
        let queue = Queue::default();
        queue.put(with_priority("a", 0));
        let attempt = queue.next().await;
        queue.unschedulable(&attempt);
        let before = Instant::now();
        queue.next().await;
        assert_eq!(before.elapsed(), UNSCHEDULABLE_MAX);
    }
}
