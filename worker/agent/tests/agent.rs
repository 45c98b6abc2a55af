//! The whole agent against a fake runtime and a fake API server, in paused time: covers long waits, and
//! failures that no real runtime shows on demand.

#[path = "agent/away.rs"]
mod away;
#[allow(dead_code, reason = "shared with the test against containerd")]
#[path = "containerd/fake_api.rs"]
mod fake_api;
#[path = "agent/runtime.rs"]
mod fake_runtime;
#[path = "agent/hangs.rs"]
mod hangs;
#[path = "agent/health.rs"]
mod health;
#[path = "agent/panics.rs"]
mod panics;
#[path = "agent/protection.rs"]
mod protection;
#[path = "agent/restart.rs"]
mod restart;
#[path = "agent/world.rs"]
mod world;
