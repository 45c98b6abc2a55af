//! Pod volumes: makes the directories that containers mount, keeps the ones made of API objects up to date, and removes them.
//!
//! The agent calls [`mount_pod_volumes`] before it starts a pod's containers and again whenever an object a volume is made of
//! changed; [`unmount_pod_volumes`] when the pod is gone. One volume type a file; what they share is [`atomic_writer`] (file sets
//! that change all at once), [`ownership`] (fsGroup), [`tmpfs`] and [`layout`] (where things lie, as kubelet lays them out).
//! Objects, tokens and the pod's own fields are asked for through [`ObjectSource`] and [`fields::PodFields`].

pub mod amounts;
pub mod atomic_writer;
mod config_map;
mod downward_api;
mod empty_dir;
pub mod error;
pub mod fields;
mod host_path;
pub mod layout;
pub mod manager;
pub mod ownership;
mod payload;
mod projected;
mod secret;
pub mod source;
pub mod subpath;
pub mod tmpfs;

pub use error::Error;
pub use layout::PodLayout;
pub use manager::{Mounted, SetUp, VolumeLock, mount_pod_volumes, unmount_pod_volumes, unsupported_volume};
pub use source::{ObjectSource, TokenRequest};
