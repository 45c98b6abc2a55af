//! Faults of the links between machines that turmoil cannot simulate: each direction on its own may be slow,
//! lose segments or hold everything back, and a machine whose process was killed refuses connections.
//! `inject.rs` sets the faults, `network.rs` and `shaped.rs` apply them.
//!
//! Turmoil's own loss drops a TCP segment for good, and with it the connection. In this file a lost segment
//! is sent again, as by TCP: it arrives late, and all that follows it waits (RFC 6298: the retransmission
//! timer begins at 200 ms in Linux and doubles).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::random::generator;

/// Time after which a lost segment is sent again for the first time.
const RESEND_MIN: Duration = Duration::from_millis(200);
/// Maximum time until a process that continues after a pause has read every socket.
const LOOKS_WITHIN: Duration = Duration::from_millis(4);
/// Maximum number of times in a row that a segment is lost.
const LOSSES_MAX: u32 = 5;
/// Stream of the seed for this file's random numbers.
const STREAM: u64 = 3;

/// Direction of a link: the sender's address and the receiver's.
pub type Way = (IpAddr, IpAddr);

/// Faults of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shape {
    /// Latency added to every segment.
    pub latency: Duration,
    /// Maximum deviation of the added latency, up or down.
    pub jitter: Duration,
    /// Share of segments that are lost, from 0 to 1.
    pub loss: f64,
    /// Number of faults that hold everything back; 0 for none.
    pub holds: u32,
}

struct State {
    ways: BTreeMap<Way, Shape>,
    refusing: BTreeSet<IpAddr>,
    /// Machines whose process is paused.
    still: BTreeSet<IpAddr>,
    random: StdRng,
    /// Readers to wake at the next change of any fault or pause.
    held: Vec<Waker>,
}

/// Faults of the links between all machines; clones share the data.
#[derive(Clone)]
pub struct Links {
    state: Arc<Mutex<State>>,
    /// Whether any fault is set, so that reads without faults need no lock.
    any: Arc<AtomicBool>,
}

/// How long a segment that has arrived must still wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// Waits for this time.
    For(Duration),
    /// Waits until no fault holds the direction back.
    Held,
    /// Waits until the reading process is no longer paused and has come to look at the socket.
    Unread,
}

impl Links {
    /// Creates links without faults.
    pub fn new(seed: u64) -> Self {
        let (ways, refusing, still, held) = Default::default();
        let state = State { ways, refusing, still, random: generator(seed, STREAM), held };
        Self { state: Arc::new(Mutex::new(state)), any: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the faults of a direction.
    pub fn shape(&self, way: Way, change: impl FnOnce(&mut Shape)) {
        let mut state = self.lock();
        let shape = state.ways.entry(way).or_default();
        change(shape);
        if *shape == Shape::default() {
            state.ways.remove(&way);
        }
        self.changed(state);
    }

    /// Sets whether a machine's process is paused: its kernel receives bytes, and nobody reads them.
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

    /// Draws the time until a process that continues has looked at a socket; random, since threads run in any
    /// order.
    pub fn look(&self) -> Duration {
        LOOKS_WITHIN * self.lock().random.random_range(0..=1000) / 1000
    }

    /// Sets whether a machine refuses connections, as its kernel does when the machine runs and its process
    /// is gone.
    pub fn refuse(&self, machine: IpAddr, refuses: bool) {
        let mut state = self.lock();
        if refuses {
            state.refusing.insert(machine)
        } else {
            state.refusing.remove(&machine)
        };
    }

    /// Returns whether a machine refuses connections.
    pub fn refuses(&self, machine: IpAddr) -> bool {
        self.lock().refusing.contains(&machine)
    }

    /// Returns whether a direction has no fault.
    pub fn is_clear(&self, way: Way) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return true;
        }
        let state = self.lock();
        !state.ways.contains_key(&way) && !state.still.contains(&way.1)
    }

    /// Draws the time that a segment takes in this direction in addition to turmoil's latency.
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

    /// Registers a waker that is called at the next change of any fault or pause.
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
