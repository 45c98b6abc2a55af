//! Makes a run repeat itself byte for byte: every random number and every clock reading of this process comes
//! from the seed, and memory addresses are the same each time (ahash hashes them). `main.rs` calls this
//! before anything else. It works for one run in a process, so the fuzzer starts a process for each seed.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, anyhow};
use nix::sys::personality::{self, Persona};
use rand_tamed::SeedableRng;
use rand_tamed::rngs::StdRng;

/// Stack size of the simulation's thread, as large as a main thread's.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// Environment variable that makes glibc keep freed memory until the run ends.
const MEMORY: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_count=1000:glibc.malloc.trim_threshold=268435456:glibc.malloc.mmap_threshold=268435456:\
     glibc.malloc.top_pad=16777216",
);

/// Runs this program again without address randomization; returns at once if that is already off.
///
/// # Errors
/// Fails if the kernel does not allow that, or the program cannot be started again.
pub fn fix_addresses() -> Result<()> {
    let now = personality::get().context("reading the personality")?;
    if now.contains(Persona::ADDR_NO_RANDOMIZE) {
        return Ok(());
    }
    personality::set(now | Persona::ADDR_NO_RANDOMIZE).context("turning address randomization off")?;
    let program = std::env::current_exe().context("finding this program")?;
    let error =
        std::process::Command::new(program).args(std::env::args_os().skip(1)).env(MEMORY.0, MEMORY.1).exec();
    Err(error).context("starting this program again")
}

/// Runs `work` with clocks and randomness taken from the simulation, on a new thread: hash table keys are
/// drawn once per thread, and the main thread has already drawn its keys from the operating system.
///
/// # Errors
/// Fails if the thread cannot be started, or panics.
pub fn tamed<T: Send + 'static>(seed: u64, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let thread = std::thread::Builder::new().name("simulation".to_owned()).stack_size(STACK_BYTES);
    let thread = thread.spawn(move || {
        let _guard = mad_turmoil::time::SimClocksGuard::init();
        work()
    });
    thread.context("starting the simulation's thread")?.join().map_err(|_| anyhow!("the simulation panicked"))
}
