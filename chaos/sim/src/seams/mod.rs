//! Simulated implementations of `proto/env`: what a master takes from the machine it runs on comes from one
//! seed and one thread. `machine.rs` builds an `Env` from these.

pub mod clock;
pub mod disk;
pub mod links;
pub mod network;
pub mod process;
pub mod random;
pub mod shaped;
pub mod sockets;
