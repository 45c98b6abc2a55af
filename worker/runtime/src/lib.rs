//! The embedded container runtime of a worker: a CRI server (`runtime.v1`, RuntimeService
//! and ImageService) with `ephor.image.v1.Images` beside it on one unix socket.
//!
//! Called by `worker/node`, which starts [`serve`] in the worker process, and by `ops/cli`,
//! which hands `ephor shim ...` to [`shim_main`] before it starts any thread, and `ephor reset`
//! to [`remove_everything`]. The agent knows nothing of this crate: it speaks CRI to the socket.
//!
//! A pod's containers belong to one shim process that outlives the worker. The runtime
//! writes a plan to disk, the shim runs a short-lived launcher that makes the container
//! through `libcontainer`, and the shim stays the parent of the container: it copies the
//! logs and writes the exit status to disk. `ops/docs/decisions/embedded-runtime.md` says why.

pub mod cgroup;
mod cleanup;
pub mod config;
mod container;
mod cri;
mod files;
pub mod image;
mod network;
mod paths;
mod sandbox;
mod server;
mod shim;
mod streaming;

pub use cleanup::{CleanupError, CleanupReport, remove_everything};
pub use config::{ImageLimits, Registries, RuntimeConfig};
pub use network::{HostLoopback, NetworkError, PodRef, PortMapping, Protocol, SandboxNetwork};
pub use server::{ServeError, serve};
pub use shim::shim_main;
