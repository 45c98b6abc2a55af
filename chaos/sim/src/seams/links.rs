//! What is wrong with the ways between machines, beyond what turmoil can do: each
//! direction on its own may be slow, lose segments or hold everything back, and a
//! machine whose process was killed refuses connections. `inject.rs` says so,
//! `network.rs` and `shaped.rs` obey.
//!
//! Turmoil's own loss takes a TCP segment away for good, and with it the
//! connection. Here a lost segment is sent again, as TCP does: it is late, and all
//! that follows it waits (RFC 6298: the retransmission timer begins at 200 ms in
//! Linux and doubles).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::random::generator;

/// After how long a segment that was lost is sent again the first time.
const RESEND_MIN: Duration = Duration::from_millis(200);
/// A process that goes on after it stood still has looked at every socket within this.
const LOOKS_WITHIN: Duration = Duration::from_millis(4);
/// A segment is lost at most so often in a row.
const LOSSES_MAX: u32 = 5;
/// Stream of the seed.
const STREAM: u64 = 3;

/// A direction: from whom to whom.
pub type Way = (IpAddr, IpAddr);

/// What is wrong with a direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shape {
    /// Added to the way of everything.
    pub latency: Duration,
    /// The latency varies by up to this, up and down.
    pub jitter: Duration,
    /// The share of segments that are lost.
    pub loss: f64,
    /// How many faults hold everything back.
    pub holds: u32,
}

struct State {
    ways: BTreeMap<Way, Shape>,
    refusing: BTreeSet<IpAddr>,
    /// Machines whose process stands still.
    still: BTreeSet<IpAddr>,
    random: StdRng,
    /// Readers that wait for the end of a hold.
    held: Vec<Waker>,
}

/// The ways between all machines; clones share them.
#[derive(Clone)]
pub struct Links {
    state: Arc<Mutex<State>>,
    /// Whether anything is wrong at all: asked at every read.
    any: Arc<AtomicBool>,
}

/// How long something that has arrived still takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// This long.
    For(Duration),
    /// Until nothing holds the direction back.
    Held,
    /// Until the process that reads goes on, and has come to look.
    Unread,
}

impl Links {
    /// Nothing is wrong yet.
    pub fn new(seed: u64) -> Self {
        let (ways, refusing, still, held) = Default::default();
        let state = State { ways, refusing, still, random: generator(seed, STREAM), held };
        Self { state: Arc::new(Mutex::new(state)), any: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wrong with a direction.
    pub fn shape(&self, way: Way, change: impl FnOnce(&mut Shape)) {
        let mut state = self.lock();
        let shape = state.ways.entry(way).or_default();
        change(shape);
        if *shape == Shape::default() {
            state.ways.remove(&way);
        }
        self.changed(state);
    }

    /// Whether the process of a machine stands still: its kernel takes what comes, and nobody reads it.
    pub fn stand_still(&self, machine: IpAddr, still: bool) {
        let mut state = self.lock();
        if still {
            state.still.insert(machine);
        } else {
            state.still.remove(&machine);
        }
        self.changed(state);
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        self.any.store(!state.ways.is_empty() || !state.still.is_empty(), Ordering::Relaxed);
        let held = std::mem::take(&mut state.held);
        drop(state);
        held.into_iter().for_each(Waker::wake);
    }

    /// How long a process that goes on takes to look at a socket, each in its turn: they come in any order, for
    /// threads do as they like.
    pub fn look(&self) -> Duration {
        LOOKS_WITHIN * self.lock().random.random_range(0..=1000) / 1000
    }

    /// Whether the process of a machine is gone while the machine runs: its kernel
    /// refuses connections.
    pub fn refuse(&self, machine: IpAddr, refuses: bool) {
        let mut state = self.lock();
        if refuses {
            state.refusing.insert(machine)
        } else {
            state.refusing.remove(&machine)
        };
    }

    /// Whether it refuses.
    pub fn refuses(&self, machine: IpAddr) -> bool {
        self.lock().refusing.contains(&machine)
    }

    /// Whether nothing is wrong with a direction.
    pub fn is_clear(&self, way: Way) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return true;
        }
        let state = self.lock();
        !state.ways.contains_key(&way) && !state.still.contains(&way.1)
    }

    /// How long a segment that goes this way takes besides what turmoil makes it take.
    pub fn delay(&self, way: Way) -> Delay {
        let state = &mut *self.lock();
        if state.still.contains(&way.1) {
            return Delay::Unread;
        }
        let Some(shape) = state.ways.get(&way).copied() else { return Delay::For(Duration::ZERO) };
        if shape.holds > 0 {
            return Delay::Held;
        }
        let mut delay = shape.latency;
        if !shape.jitter.is_zero() {
            delay = (delay + shape.jitter * 2 * state.random.random_range(0..=1000) / 1000)
                .saturating_sub(shape.jitter);
        }
        let mut resend = RESEND_MIN;
        for _ in 0..LOSSES_MAX {
            if shape.loss <= 0.0 || !state.random.random_bool(shape.loss.min(1.0)) {
                break;
            }
            delay += resend;
            resend *= 2;
        }
        Delay::For(delay)
    }

    /// Wakes when what is wrong changes.
    pub fn wait(&self, waker: &Waker) {
        let held = &mut self.lock().held;
        if !held.iter().any(|known| known.will_wake(waker)) {
            held.push(waker.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(from: u8, to: u8) -> Way {
        (IpAddr::from([10, 0, 0, from]), IpAddr::from([10, 0, 0, to]))
    }

    #[test]
    fn a_direction_is_struck_alone() {
        let links = Links::new(1);
        links.shape(way(1, 2), |shape| shape.latency = Duration::from_millis(50));
        assert_eq!(links.delay(way(1, 2)), Delay::For(Duration::from_millis(50)));
        assert_eq!(links.delay(way(2, 1)), Delay::For(Duration::ZERO));
        links.shape(way(1, 2), |shape| shape.latency = Duration::ZERO);
        assert_eq!(links.delay(way(1, 2)), Delay::For(Duration::ZERO));
        assert!(!links.any.load(Ordering::Relaxed));
    }

    #[test]
    fn what_is_lost_is_late_and_only_some_of_it() {
        let links = Links::new(1);
        links.shape(way(1, 2), |shape| shape.loss = 0.2);
        let delays: Vec<_> = (0..1000).map(|_| links.delay(way(1, 2))).collect();
        let late = delays.iter().filter(|delay| **delay != Delay::For(Duration::ZERO)).count();
        assert!((150..250).contains(&late), "{late}");
        let most = Delay::For(RESEND_MIN * ((1 << LOSSES_MAX) - 1));
        assert!(delays.iter().all(|delay| match (delay, most) {
            (Delay::For(delay), Delay::For(most)) => *delay <= most,
            _ => false,
        }));
    }

    #[test]
    fn two_holds_end_with_the_second() {
        let links = Links::new(1);
        links.shape(way(1, 2), |shape| shape.holds += 1);
        links.shape(way(1, 2), |shape| shape.holds += 1);
        links.shape(way(1, 2), |shape| shape.holds -= 1);
        assert_eq!(links.delay(way(1, 2)), Delay::Held);
        links.shape(way(1, 2), |shape| shape.holds -= 1);
        assert_eq!(links.delay(way(1, 2)), Delay::For(Duration::ZERO));
    }
}
