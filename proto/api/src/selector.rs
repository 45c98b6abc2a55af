//! Label selectors and field selectors: parsing with Kubernetes' messages, and matching. The API server uses
//! them for lists and watches, controllers for the selectors inside objects.

mod fields;
mod labels;
mod parse;

pub use fields::{FieldRequirement, FieldSelector};
pub use labels::{LabelSelector, LabelSelectorRequirement, Labels, Operator, Requirement, Selector};
