//! The conditions of a namespace that is being deleted, with Kubernetes' texts. Pure; called by
//! `namespace.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::RemainingContent;

/// Sets the five conditions according to `remains`; a condition that does not change keeps its time.
pub(super) fn update(status: &mut NamespaceStatus, remains: &RemainingContent, now: &Time) {
    let conditions = status.conditions.get_or_insert_default();
    for mut wanted in wanted(remains) {
        match conditions.iter_mut().find(|condition| condition.type_ == wanted.type_) {
            Some(current) => {
                if current.status == wanted.status
                    && current.reason == wanted.reason
                    && current.message == wanted.message
                {
                    continue;
                }
                wanted.last_transition_time = Some(now.clone());
                *current = wanted;
            }
            None => {
                wanted.last_transition_time = Some(now.clone());
                conditions.push(wanted);
            }
        }
    }
}

fn wanted(remains: &RemainingContent) -> [NamespaceCondition; 5] {
    let failures = remains.failures.join(", ");
    let objects = list(&remains.objects, |kind, count| format!("{kind} has {count} resource instances"));
    let finalizers = list(&remains.finalizers, |name, count| format!("{name} in {count} resource instances"));
    [
        condition(
            "NamespaceDeletionDiscoveryFailure",
            remains.discovery.as_ref().map(|error| {
                ("DiscoveryFailed", format!("Discovery failed for some groups, 1 failing: {error}"))
            }),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            (!failures.is_empty()).then(|| {
                (
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {failures}",
                        remains.failures.len()
                    ),
                )
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        condition(
            "NamespaceContentRemaining",
            objects
                .map(|objects| ("SomeResourcesRemain", format!("Some resources are remaining: {objects}"))),
            ("ContentRemoved", "All content successfully removed"),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            finalizers.map(|finalizers| {
                (
                    "SomeFinalizersRemain",
                    format!("Some content in the namespace has finalizers remaining: {finalizers}"),
                )
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

fn list(counts: &BTreeMap<String, usize>, text: impl Fn(&str, usize) -> String) -> Option<String> {
    let parts: Vec<_> = counts.iter().map(|(name, count)| text(name, *count)).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Creates a condition: True with `trouble` when there is any, else False with `fine`.
fn condition(kind: &str, trouble: Option<(&str, String)>, fine: (&str, &str)) -> NamespaceCondition {
    let (status, reason, message) = match trouble {
        Some((reason, message)) => ("True", reason.to_owned(), message),
        None => ("False", fine.0.to_owned(), fine.1.to_owned()),
    };
    NamespaceCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason),
        message: Some(message),
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_named_and_goes_away_again() {
        let now: Time = serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).unwrap();
        let mut status = NamespaceStatus::default();
        let mut remains = RemainingContent::default();
        remains.objects.insert("pods.v1.".to_owned(), 2);
        update(&mut status, &remains, &now);
        let find = |status: &NamespaceStatus| {
            let conditions = status.conditions.clone().unwrap();
            assert_eq!(conditions.len(), 5);
            conditions.into_iter().find(|condition| condition.type_ == "NamespaceContentRemaining").unwrap()
        };
        let message = find(&status).message.unwrap();
        assert_eq!(message, "Some resources are remaining: pods.v1. has 2 resource instances");
        update(&mut status, &RemainingContent::default(), &now);
        assert_eq!(find(&status).status, "False");
    }
}
