//! Node selectors and node affinity terms. Pure; used by the NodeAffinity plugins and the topology spread.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::snapshot::{NodeInfo, PodInfo};

/// Whether the node satisfies `spec.nodeSelector` and the required node affinity.
pub(crate) fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = &pod.pod.spec else { return true };
    let labels = &node.labels;
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let required = pod
        .affinity()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

/// Whether the node satisfies every requirement of a term. A term without requirements matches no node.
pub(crate) fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|requirement| fulfils(requirement, node.labels.get(&requirement.key)))
        && fields
            .iter()
            .all(|requirement| requirement.key == "metadata.name" && fulfils(requirement, Some(&node.name)))
}

fn fulfils(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = || -> Option<(i64, i64)> { Some((value?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().is_some_and(|(own, bound)| own > bound),
        "Lt" => number().is_some_and(|(own, bound)| own < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use crate::testing::{node, pod};
    use serde_json::{Value, json};

    fn check(spec: Value) -> bool {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node(
            "n1",
            json!({}),
            json!({"metadata": {"labels": {"disk": "ssd", "size": "5"}}}),
        ));
        accepts(&pod("p", json!({}), json!({"spec": spec})), snapshot.node("n1").unwrap())
    }

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn the_selector_and_one_of_the_terms_must_fit() {
        assert!(check(json!({"nodeSelector": {"disk": "ssd"}})));
        assert!(!check(json!({"nodeSelector": {"disk": "hdd"}})));
        let fits = json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["4"]}]});
        let fails = json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]});
        assert!(check(required(json!([fails, fits]))));
        assert!(!check(required(json!([fails]))));
        assert!(!check(required(json!([{}]))), "an empty term fits no node");
    }

    #[test]
    fn a_term_may_name_the_node() {
        let name = |name: &str| {
            required(json!([{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [name]}]}]))
        };
        assert!(check(name("n1")));
        assert!(!check(name("n2")));
    }
}
