//! One file a command.

pub mod chaos;
pub mod image;
pub mod kubeconfig;
pub mod master;
pub mod members;
pub mod reset;
pub mod status;
pub mod token;
pub mod worker;
