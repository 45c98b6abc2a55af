//! The list of kinds with rules of their own. `registry/store.rs` gets a resource's strategy here; strategies
//! share `check.rs`, `string_rules.rs`, `ip.rs` and the crate's `json_fields.rs`.

pub mod check;
pub mod configmap;
pub mod daemonset;
pub mod deployment;
mod diff;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod ip;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod podtemplate;
pub mod replicaset;
pub mod review;
pub mod scale;
pub mod secret;
pub mod service;
pub mod serviceaccount;
mod string_rules;
pub mod template;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod workload;

use super::strategy::{Generic, Strategy};
pub use crate::json_fields;
use review::AccessReview;

/// Returns the strategy of a resource; the generic one where the kind has no rules of its own.
pub fn strategy_for(group: &str, resource: &str) -> &'static dyn Strategy {
    match (group, resource) {
        ("", "configmaps") => &configmap::ConfigMapStrategy,
        ("", "endpoints") => &endpoints::EndpointsStrategy,
        ("", "events") => &event::EventStrategy { new_group: false },
        ("", "namespaces") => &namespace::NamespaceStrategy,
        ("", "nodes") => &node::NodeStrategy,
        ("", "pods") => &pod::PodStrategy,
        ("", "podtemplates") => &podtemplate::PodTemplateStrategy,
        ("", "secrets") => &secret::SecretStrategy,
        ("", "serviceaccounts") => &serviceaccount::ServiceAccountStrategy,
        ("", "services") => &service::ServiceStrategy,
        ("apps", "daemonsets") => &daemonset::DaemonSetStrategy,
        ("apps", "deployments") => &deployment::DeploymentStrategy,
        ("apps", "replicasets") => &replicaset::ReplicaSetStrategy,
        ("authorization.k8s.io", "localsubjectaccessreviews") => &AccessReview::Local,
        ("authorization.k8s.io", "selfsubjectaccessreviews") => &AccessReview::Own,
        ("authorization.k8s.io", "subjectaccessreviews") => &AccessReview::Any,
        ("coordination.k8s.io", "leases") => &lease::LeaseStrategy,
        ("discovery.k8s.io", "endpointslices") => &endpointslice::EndpointSliceStrategy,
        ("events.k8s.io", "events") => &event::EventStrategy { new_group: true },
        _ => &Generic,
    }
}
