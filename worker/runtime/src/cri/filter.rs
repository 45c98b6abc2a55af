//! CRI's list filters.

use std::collections::HashMap;

/// Returns whether the labels contain all that a selector asks for.
pub(super) fn labels_match(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Returns whether `id` is `wanted` or starts with it; an empty `wanted` matches every id.
pub(super) fn id_matches(id: &str, wanted: &str) -> bool {
    id.starts_with(wanted)
}
