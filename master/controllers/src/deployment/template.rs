//! Pod templates in ReplicaSets: their hash and their equality. Called by `replica_sets.rs`.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// Label whose value distinguishes the pods of one template from those of another.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";

/// Characters of hashes: no vowels, so that no words appear.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Returns a stable 32-bit FNV-1a hash over the template's canonical JSON and the collision count, written
/// like upstream's: its decimal digits in the safe alphabet. The same template has the same hash in every
/// version of Ephor.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(canonical(template).to_string().as_bytes());
    if let Some(collisions) = collisions {
        feed(&collisions.to_le_bytes());
    }
    hash.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// Whether two templates describe the same pods, whatever their hash labels say.
pub(crate) fn equal(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    canonical(left) == canonical(right)
}

/// Converts the template to JSON in which absent, null and empty lists are the same, without the hash label.
fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    for field in ["/metadata/labels", "/metadata/annotations", "/spec/nodeSelector"] {
        if let Some(map) = value.pointer_mut(field)
            && map.as_object().is_some_and(serde_json::Map::is_empty)
        {
            *map = Value::Null;
        }
    }
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|_, field| !field.is_null() && !field.as_array().is_some_and(Vec::is_empty));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]}
        }))
        .unwrap()
    }

    #[test]
    fn the_hash_of_a_template_never_changes() {
        assert_eq!(hash(&template("a"), None), hash(&template("a"), None));
        assert_eq!(hash(&template("web:1"), None), PINNED);
        assert_ne!(hash(&template("a"), None), hash(&template("b"), None));
        assert_ne!(hash(&template("a"), None), hash(&template("a"), Some(1)));
    }

    /// A change of this constant restarts every pod of every Deployment after an upgrade.
    const PINNED: &str = "5d98bb5557";

    #[test]
    fn the_hash_label_and_empty_lists_make_no_difference() {
        let mut labeled = template("a");
        let labels = labeled.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), "x".to_owned());
        labeled.spec.get_or_insert_default().volumes = Some(vec![]);
        assert!(equal(&labeled, &template("a")));
        assert_eq!(hash(&labeled, None), hash(&template("a"), None));
        assert!(!equal(&template("b"), &template("a")));
    }

    #[test]
    fn an_empty_directory_is_not_the_same_as_none() {
        let mut with = template("a");
        with.spec.get_or_insert_default().volumes =
            serde_json::from_value(json!([{"name": "v", "emptyDir": {}}])).unwrap();
        let mut without = with.clone();
        without.spec.get_or_insert_default().volumes =
            serde_json::from_value(json!([{"name": "v"}])).unwrap();
        assert!(!equal(&with, &without));
    }
}
