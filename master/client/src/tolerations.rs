//! Whether a pod's toleration covers a node's taint. Pure; used by the scheduler and by taint eviction in
//! the controllers.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether `toleration` tolerates `taint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    if given(&toleration.key).is_some_and(|key| key != taint.key) {
        return false;
    }
    let own = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => own == value,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(toleration: Value) -> bool {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        tolerates(&serde_json::from_value(toleration).unwrap(), &serde_json::from_value(taint).unwrap())
    }

    #[test]
    fn key_value_and_effect_must_agree_where_they_are_given() {
        assert!(check(json!({"key": "k", "value": "v", "effect": "NoSchedule"})));
        assert!(check(json!({"key": "k", "operator": "Exists"})));
        assert!(check(json!({"operator": "Exists"})));
        assert!(!check(json!({"key": "k", "value": "other"})));
        assert!(!check(json!({"key": "k"})), "without a value only an empty value is tolerated");
        assert!(!check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})));
    }
}
