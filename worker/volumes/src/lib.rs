//! Pod volumes: creates the directories that containers mount, keeps those made of API objects up to date,
//! and removes them.
//!
//! The agent calls [`mount_pod_volumes`] before it starts a pod's containers and whenever an object used by a
//! volume has changed, and [`unmount_pod_volumes`] when the pod is gone. Each volume type has its own file;
//! they share [`atomic_writer`] (replaces a set of files at once), [`ownership`] (fsGroup), [`tmpfs`] and
//! [`layout`] (kubelet's paths). Objects and tokens come from an [`ObjectSource`], the pod's own fields from
//! [`pod_fields::PodFields`].

pub mod amounts;
pub mod atomic_writer;
mod config_map;
mod downward_api;
mod empty_dir;
pub mod error;
mod host_path;
pub mod layout;
pub mod manager;
pub mod object_source;
pub mod ownership;
mod payload;
pub mod pod_fields;
mod projected;
mod secret;
pub mod subpath;
pub mod tmpfs;

pub use error::Error;
pub use layout::PodLayout;
pub use manager::{
    MountedVolume, SetUpResult, VolumeLock, mount_pod_volumes, unmount_pod_volumes, unsupported_volume,
};
pub use object_source::{ObjectSource, TokenRequest};
