//! The Kubernetes API contract that all folders share: Status errors, field errors, name rules, selectors,
//! quantities, the table of served kinds and the schema table made from Kubernetes' own types.
//!
//! Used by the API server for every request and its strategies for validation, and by controllers,
//! scheduler and agent for selectors, quantities and kinds. It does no I/O and depends on no other folder.

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
