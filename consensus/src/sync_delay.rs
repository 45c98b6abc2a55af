//! Delayed syncs for the simulation, where nothing may block: the disk says how long a sync should have
//! blocked ([`Disk::sync_time`]), and the completions of syncs wait here, in order. On a real disk they are
//! not delayed. Used by `log_store.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto_env::Disk;
use tokio::sync::mpsc;
use tokio::time::Instant;

type Then = Box<dyn FnOnce() + Send>;

/// The queue of completions that wait for syncs of one disk.
#[derive(Clone)]
pub(crate) struct SyncDelay {
    disk: Arc<dyn Disk>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    /// When the sync in progress ends, and when the next one ends, which covers all writes made meanwhile;
    /// `None` without one.
    ends: Option<Instant>,
    next: Option<Instant>,
    sender: Option<mpsc::UnboundedSender<(Instant, Then)>>,
}

impl Queue {
    /// Returns when a sync requested at `now` ends: a sync already in progress does not cover the write.
    fn due(&mut self, now: Instant, takes: Duration) -> Instant {
        while self.ends.is_some_and(|ends| ends <= now) {
            self.ends = self.next.take();
        }
        match self.ends {
            None => *self.ends.insert(now + takes),
            Some(ends) => *self.next.get_or_insert(ends + takes),
        }
    }
}

impl SyncDelay {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, queue: Arc::default() }
    }

    /// Runs `then` when the sync that has just been made counts as done.
    pub(crate) fn after(&self, then: impl FnOnce() + Send + 'static) {
        let takes = self.disk.sync_time();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if takes.is_zero() && queue.sender.is_none() {
            drop(queue);
            return then();
        }
        let due = if takes.is_zero() { Instant::now() } else { queue.due(Instant::now(), takes) };
        let sender = queue.sender.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(run(receiver));
            sender
        });
        // The receiving task ends only together with this sender.
        let _ = sender.send((due, Box::new(then)));
    }
}

/// Runs the completions in the order in which they came; their due times never decrease.
async fn run(mut waiting: mpsc::UnboundedReceiver<(Instant, Then)>) {
    while let Some((due, then)) = waiting.recv().await {
        tokio::time::sleep_until(due).await;
        then();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_during_a_sync_shares_the_next() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let ms = |ms| start + Duration::from_millis(ms);
        let takes = Duration::from_millis(100);
        assert_eq!(queue.due(ms(0), takes), ms(100));
        assert_eq!(queue.due(ms(10), takes), ms(200));
        assert_eq!(queue.due(ms(90), takes), ms(200));
        assert_eq!(queue.due(ms(150), takes), ms(300));
        assert_eq!(queue.due(ms(500), takes), ms(600));
    }
}
