//! The Kubernetes API contract every room shares: Status errors, field errors, name rules, selectors,
//! quantities, the table of served kinds and the schema table made from Kubernetes' own types.
//!
//! Who calls it: the API server for every request, its strategies for validation, and controllers,
//! scheduler and agent for selectors, quantities and kinds. It does no I/O and knows no other room.

pub mod events;
pub mod field;
pub mod go;
pub mod json;
pub mod kinds;
pub mod names;
pub mod node_labels;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod silent_masters;
pub mod status;
pub mod yaml;

pub use field::{Error as FieldError, ErrorList, Path};
pub use status::Status;
