//! The subcommands of `ephor`, one file each.

pub mod backup;
pub mod chaos;
pub mod image;
pub mod kubeconfig;
pub mod master;
pub mod members;
pub mod recover;
pub mod reset;
pub mod status;
pub mod token;
pub mod worker;
