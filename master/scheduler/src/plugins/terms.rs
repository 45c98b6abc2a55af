//! Pod affinity terms: which pods they select and in which topology domain. Pure; used by the pod affinity
//! plugins.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodAffinityTerm;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::snapshot::{PodInfo, Snapshot};

/// Converts a label selector to a matcher; `None`, which matches nothing, when it is absent or invalid.
pub(crate) fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    Selector::try_from(selector?.clone()).ok()
}

/// An affinity term, prepared for matching against pods.
pub(crate) struct Term {
    pub topology_key: String,
    selector: Option<Selector>,
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
}

impl Term {
    /// Prepares a term of `owner`: without namespaces it applies to the owner's own.
    pub fn new(term: &PodAffinityTerm, owner: &PodInfo) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(owner.namespace().to_owned());
        }
        let mut labels = term.label_selector.clone();
        if let Some(labels) = &mut labels {
            let own = owner.labels();
            for key in term.match_label_keys.iter().flatten() {
                if let Some(value) = own.get(key) {
                    labels.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
                }
            }
        }
        Self {
            topology_key: term.topology_key.clone(),
            selector: selector(labels.as_ref()),
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref()),
        }
    }

    /// Whether the term selects this pod.
    pub fn selects(&self, pod: &PodInfo, snapshot: &Snapshot) -> bool {
        let named = self.namespaces.iter().any(|name| name == pod.namespace());
        let selected = || {
            self.namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(snapshot.namespace_labels(pod.namespace())))
        };
        (named || selected()) && self.selector.as_ref().is_some_and(|selector| selector.matches(pod.labels()))
    }
}

/// Returns the required terms of the pod's affinity, or of its anti-affinity.
pub(crate) fn required(pod: &PodInfo, anti: bool) -> Vec<Term> {
    let affinity = pod.affinity();
    let terms = if anti {
        affinity
            .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
            .and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref())
    } else {
        affinity
            .and_then(|affinity| affinity.pod_affinity.as_ref())
            .and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref())
    };
    terms.into_iter().flatten().map(|term| Term::new(term, pod)).collect()
}

/// Returns the preferred terms with their weights; those of the anti-affinity have negative weights.
pub(crate) fn preferred(pod: &PodInfo) -> Vec<(Term, i64)> {
    let affinity = pod.affinity();
    let wanted = affinity
        .and_then(|affinity| affinity.pod_affinity.as_ref())
        .and_then(|terms| terms.preferred_during_scheduling_ignored_during_execution.as_ref());
    let unwanted = affinity
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|terms| terms.preferred_during_scheduling_ignored_during_execution.as_ref());
    let weigh = |sign: i64| {
        move |term: &k8s_openapi::api::core::v1::WeightedPodAffinityTerm| {
            (term.pod_affinity_term.clone(), sign * i64::from(term.weight))
        }
    };
    let wanted = wanted.into_iter().flatten().map(weigh(1));
    let unwanted = unwanted.into_iter().flatten().map(weigh(-1));
    wanted.chain(unwanted).map(|(term, weight)| (Term::new(&term, pod), weight)).collect()
}

/// Sums of weights by topology key and value.
pub(crate) type Domains = BTreeMap<(String, String), i64>;
