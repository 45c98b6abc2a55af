//! Label and field selectors of one request, parsed once and matched against shared views of objects. Lists,
//! watches and deletecollection use them.

use proto_api::selector::{FieldSelector, Selector};
use proto_api::status::Status;

use super::object::ObjectView;
use super::store::Target;

/// The label and field selectors of a request.
#[derive(Debug)]
pub struct Selection {
    labels: Selector,
    fields: FieldSelector,
}

impl Selection {
    /// Parses both selectors; field labels must be among the kind's.
    ///
    /// # Errors
    ///
    /// 400 with Kubernetes' message.
    pub fn parse(target: Target<'_>, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = Selector::parse(labels).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(fields).map_err(Status::bad_request)?;
        let gvk = target.kind.gvk;
        fields
            .check_supported(gvk.kind, &gvk.api_version(), target.strategy.supported_field_labels())
            .map_err(Status::bad_request)?;
        Ok(Self { labels, fields })
    }

    /// Returns whether the selection has no conditions.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Returns whether an object matches both selectors.
    pub fn matches(&self, view: &ObjectView) -> bool {
        self.labels.matches(&view.labels) && self.fields.matches(|label| view.fields.get(label))
    }

    /// Returns the value a field must have; `None` where the selector does not require exactly one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.fields.exact(field)
    }
}
