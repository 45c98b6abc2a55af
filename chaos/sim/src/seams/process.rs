//! Processes of one machine: a runtime with a clock of its own, which the world advances by one tick at a
//! time or leaves paused. Turmoil advances every host that runs, so a process that can be paused does not run
//! on a turmoil host; only the machine's operating system does (`sockets.rs`), which goes on while a process
//! is paused.
//!
//! After a pause a process continues as after SIGCONT: its sockets hold what has arrived, its monotonic clock
//! has advanced, and every timer that became due during the pause fires at once.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use super::clock;

/// The processes of one machine.
pub struct Process {
    name: String,
    runtime: Runtime,
    local: LocalSet,
    paused: bool,
    /// Time that has passed since the processes last ran.
    missed: Duration,
}

impl Process {
    /// Starts `software` on the machine called `name`.
    ///
    /// # Errors
    /// Fails if the async runtime cannot be created.
    pub fn start(name: &str, software: impl Future<Output = ()> + 'static) -> std::io::Result<Self> {
        // Deterministic like turmoil's own runtime: a single thread, and time moves only when advanced.
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let local = LocalSet::new();
        local.spawn_local(software);
        Ok(Self { name: name.to_owned(), runtime, local, paused: false, missed: Duration::ZERO })
    }

    /// Pauses the processes (SIGSTOP) or lets them continue (SIGCONT).
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Runs the processes for one tick that begins at simulated time `now`.
    pub fn tick(&mut self, now: Duration, tick: Duration) {
        if self.paused {
            self.missed += tick;
            return;
        }
        let _span = tracing::info_span!("node", name = self.name).entered();
        let missed = std::mem::take(&mut self.missed);
        let goes_by = async {
            let _clock = clock::begin(now.saturating_sub(missed));
            if !missed.is_zero() {
                tokio::time::advance(missed).await;
            }
            self.local.run_until(tokio::time::sleep(tick)).await;
        };
        self.runtime.block_on(goes_by);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    #[test]
    fn a_paused_process_does_nothing_and_finds_that_time_has_gone_by() {
        let seen: Rc<RefCell<Vec<(Duration, Duration)>>> = Rc::default();
        let told = seen.clone();
        let mut process = Process::start("m1", async move {
            let begun = tokio::time::Instant::now();
            // A spawned task is paused as well.
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(TICK * 10).await;
                    told.borrow_mut().push((clock::elapsed(), begun.elapsed()));
                }
            });
        })
        .unwrap();
        let mut now = Duration::from_secs(5);
        let mut run = |process: &mut Process, ticks: u32| {
            for _ in 0..ticks {
                process.tick(now, TICK);
                now += TICK;
            }
        };
        run(&mut process, 25);
        assert_eq!(seen.borrow().len(), 2);
        process.pause(true);
        run(&mut process, 400);
        assert_eq!(seen.borrow().len(), 2);
        process.pause(false);
        run(&mut process, 2);
        // The 30 ms timer is long due; it fires once, and the clocks agree with the world's.
        let (elapsed, monotonic) = *seen.borrow().last().unwrap();
        assert_eq!(seen.borrow().len(), 3);
        assert!(elapsed >= Duration::from_millis(5425), "{elapsed:?}");
        assert!(monotonic >= Duration::from_millis(425), "{monotonic:?}");
    }
}
