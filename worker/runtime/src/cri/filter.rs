//! CRI's list filters.

use std::collections::HashMap;

/// Whether labels have all that a selector asks for.
pub(super) fn labels_match(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether an id is the one asked for, or begins so; an empty one asks for all.
pub(super) fn id_matches(id: &str, wanted: &str) -> bool {
    id.starts_with(wanted)
}
