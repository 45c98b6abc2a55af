//! The generic registry: reads and writes objects of all kinds, with a strategy file for each kind that has
//! rules of its own. Handlers call it; it proposes transactions to `consensus`.

mod caught_up;
pub mod continue_token;
pub mod convert;
pub mod create;
pub mod delete;
mod expiry;
pub mod key;
pub mod kinds;
pub mod list;
pub mod metadata;
pub mod object;
pub mod selection;
pub mod store;
pub mod strategy;
pub mod update;
pub mod write;

pub use store::{Registry, Target};
