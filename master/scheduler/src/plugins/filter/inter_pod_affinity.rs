//! Enforces InterPodAffinity: required affinity and anti-affinity to other pods, in both directions: an
//! existing pod's anti-affinity may keep the new pod away too.

use std::collections::BTreeSet;

use crate::plugins::terms::{Term, required};
use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};
use crate::snapshot::{NodeInfo, PodInfo};

pub(crate) struct InterPodAffinity;

type Domain = (String, String);

impl Filter for InterPodAffinity {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let wanted = required(cycle.pod, false);
        let unwanted = required(cycle.pod, true);
        let closed = closed_domains(cycle);
        if wanted.is_empty() && unwanted.is_empty() && closed.is_empty() {
            return None;
        }
        let near = domains_with_all(&wanted, cycle);
        let far = domains_with_any(&unwanted, cycle);
        // The first pod of a group with affinity to itself may be placed anywhere.
        let first = near.is_empty() && wanted.iter().all(|term| term.selects(cycle.pod, cycle.snapshot));
        Some(Box::new(move |info| {
            let labelled = wanted.iter().all(|term| info.labels.contains_key(&term.topology_key));
            let together = wanted.iter().all(|term| in_domain(info, &term.topology_key, &near));
            if !wanted.is_empty() && !(labelled && (together || first)) {
                return Some(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
            }
            if unwanted.iter().any(|term| in_domain(info, &term.topology_key, &far)) {
                return Some(Rejection::one("node(s) didn't match pod anti-affinity rules"));
            }
            let kept_away = closed.iter().any(|(key, value)| info.labels.get(key) == Some(value));
            kept_away.then(|| Rejection::one("node(s) didn't satisfy existing pods anti-affinity rules"))
        }))
    }
}

fn in_domain(info: &NodeInfo, key: &str, domains: &BTreeSet<Domain>) -> bool {
    info.labels.get(key).is_some_and(|value| domains.contains(&(key.to_owned(), value.clone())))
}

/// Returns the domains with a pod that every term selects.
fn domains_with_all(terms: &[Term], cycle: &Cycle<'_>) -> BTreeSet<Domain> {
    collect(terms, cycle, |pod, _| terms.iter().all(|term| term.selects(pod, cycle.snapshot)))
}

/// Returns the domains with a pod that the domain's own term selects.
fn domains_with_any(terms: &[Term], cycle: &Cycle<'_>) -> BTreeSet<Domain> {
    collect(terms, cycle, |pod, term| term.selects(pod, cycle.snapshot))
}

fn collect(terms: &[Term], cycle: &Cycle<'_>, counts: impl Fn(&PodInfo, &Term) -> bool) -> BTreeSet<Domain> {
    let mut domains = BTreeSet::new();
    if terms.is_empty() {
        return domains;
    }
    for info in cycle.snapshot.nodes() {
        for term in terms {
            let Some(value) = info.labels.get(&term.topology_key) else { continue };
            let domain = (term.topology_key.clone(), value.clone());
            if !domains.contains(&domain) && info.pods.values().any(|pod| counts(pod, term)) {
                domains.insert(domain);
            }
        }
    }
    domains
}

/// Returns the domains from which existing pods' anti-affinity keeps the new pod away.
fn closed_domains(cycle: &Cycle<'_>) -> BTreeSet<Domain> {
    let mut domains = BTreeSet::new();
    for info in cycle.snapshot.nodes() {
        for pod in info.with_anti_affinity.iter().filter_map(|key| info.pods.get(key)) {
            for term in required(pod, true) {
                let Some(value) = info.labels.get(&term.topology_key) else { continue };
                if term.selects(cycle.pod, cycle.snapshot) {
                    domains.insert((term.topology_key.clone(), value.clone()));
                }
            }
        }
    }
    domains
}
