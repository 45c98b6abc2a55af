//! What makes a run repeat itself byte for byte: every random number and every
//! reading of a clock of this process comes from the seed, and addresses are the
//! same each time (ahash hashes them). `main.rs` calls this before anything
//! else; it works for one run in a process, so the fuzzer starts a process for
//! each seed.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use nix::sys::personality::{self, Persona};
use rand_tamed::SeedableRng;
use rand_tamed::rngs::StdRng;

/// Runs this program again without address randomization, unless it is off.
///
/// # Errors
/// Where the kernel does not allow that, or the program cannot be started again.
pub fn fix_addresses() -> Result<()> {
    let now = personality::get().context("reading the personality")?;
    if now.contains(Persona::ADDR_NO_RANDOMIZE) {
        return Ok(());
    }
    personality::set(now | Persona::ADDR_NO_RANDOMIZE).context("turning address randomization off")?;
    let program = std::env::current_exe().context("finding this program")?;
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("starting this program again")
}

/// Clocks and randomness come from the simulation until the guard is dropped.
#[must_use]
pub fn tame(seed: u64) -> mad_turmoil::time::SimClocksGuard {
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    mad_turmoil::time::SimClocksGuard::init()
}
