//! The plugins of a scheduling cycle. Each prepares a function over nodes for a pod: filters return why a
//! node is not suitable, scores how good it is. Called by `cycle.rs`; one plugin per file.

pub(crate) mod filter;
pub(crate) mod node_selector;
pub(crate) mod score;
pub(crate) mod taints;
pub(crate) mod terms;

use master_client::Informers;

use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Why a node is not suitable, in Kubernetes' words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub reasons: Vec<String>,
    /// Whether removing pods could not help.
    pub unresolvable: bool,
}

impl Rejection {
    /// A rejection that removing pods could resolve.
    pub fn one(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    /// A rejection whose cause is the node itself.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// The input of a scheduling cycle: the pod and the state to decide on.
pub(crate) struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub snapshot: &'a Snapshot,
    /// The caches of Services and ReplicaSets, for the default topology spread.
    pub informers: &'a Informers,
}

/// Checks one node; `None` when it is suitable.
pub(crate) type NodeFilter<'a> = Box<dyn Fn(&NodeInfo) -> Option<Rejection> + 'a>;
/// Scores one node; higher is better.
pub(crate) type NodeScore<'a> = Box<dyn Fn(&NodeInfo) -> i64 + 'a>;

/// A filter plugin.
pub(crate) trait Filter: Sync {
    /// Prepares the filter for this pod; `None` when it accepts all nodes.
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>>;
}

/// Highest normalized score of a plugin.
pub(crate) const MAX_SCORE: i64 = 100;

/// A score plugin.
pub(crate) trait Score: Sync {
    /// Weight of the plugin's scores in the sum.
    fn weight(&self) -> i64;

    /// Prepares the scoring for this pod; `None` when it does not distinguish nodes. `nodes` are those that
    /// passed the filters.
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, nodes: &[&NodeInfo]) -> Option<NodeScore<'a>>;

    /// Scales raw scores to between 0 and [`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; with `reverse` the highest becomes the lowest.
pub(crate) fn scale(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        if max == 0 {
            *score = if reverse { MAX_SCORE } else { 0 };
            continue;
        }
        *score = MAX_SCORE * *score / max;
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}

/// All filters, in the order in which they are asked; the first rejection of a node is reported.
pub(crate) const FILTERS: &[&dyn Filter] = &[
    &filter::node_unschedulable::NodeUnschedulable,
    &filter::node_name::NodeName,
    &filter::taint_toleration::TaintToleration,
    &filter::node_affinity::NodeAffinity,
    &filter::node_ports::NodePorts,
    &filter::node_resources_fit::NodeResourcesFit,
    &filter::pod_topology_spread::PodTopologySpread,
    &filter::inter_pod_affinity::InterPodAffinity,
];

/// All score plugins.
pub(crate) const SCORES: &[&dyn Score] = &[
    &score::taint_toleration::TaintToleration,
    &score::node_affinity::NodeAffinity,
    &score::least_allocated::LeastAllocated,
    &score::balanced_allocation::BalancedAllocation,
    &score::pod_topology_spread::PodTopologySpread,
    &score::inter_pod_affinity::InterPodAffinity,
    &score::image_locality::ImageLocality,
];
