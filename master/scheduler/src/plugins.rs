//! The plugins of a scheduling cycle. Each looks at a pod once and gives a function over nodes: filters say why a
//! node will not do, scores how well it would. Called by `cycle.rs`; one plugin a file.

pub(crate) mod filter;
pub(crate) mod node_selector;
pub(crate) mod score;
pub(crate) mod taints;
pub(crate) mod terms;

use master_client::Informers;

use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Why a node will not do, in Kubernetes' words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub reasons: Vec<String>,
    /// Whether no pod's removal could help.
    pub unresolvable: bool,
}

impl Rejection {
    /// Could be helped by removing pods.
    pub fn one(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    /// Lies in the node itself.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// What a cycle is about.
pub(crate) struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub snapshot: &'a Snapshot,
    /// Services and ReplicaSets, for the default spread.
    pub informers: &'a Informers,
}

/// Judges one node.
pub(crate) type NodeFilter<'a> = Box<dyn Fn(&NodeInfo) -> Option<Rejection> + 'a>;
/// Rates one node.
pub(crate) type NodeScore<'a> = Box<dyn Fn(&NodeInfo) -> i64 + 'a>;

/// A filter plugin.
pub(crate) trait Filter: Sync {
    /// The filter for this pod; none when it has nothing to say.
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>>;
}

/// Highest score a plugin gives.
pub(crate) const MAX_SCORE: i64 = 100;

/// A score plugin.
pub(crate) trait Score: Sync {
    /// How much it counts.
    fn weight(&self) -> i64;

    /// The rating for this pod; none when all nodes are alike to it. `nodes` are those that passed the filters.
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, nodes: &[&NodeInfo]) -> Option<NodeScore<'a>>;

    /// Brings raw scores between 0 and [`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales scores so that the highest is [`MAX_SCORE`]; with `reverse` the highest becomes the lowest.
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

/// All filters, in the order in which a node's first refusal is reported.
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

/// All scores.
pub(crate) const SCORES: &[&dyn Score] = &[
    &score::taint_toleration::TaintToleration,
    &score::node_affinity::NodeAffinity,
    &score::least_allocated::LeastAllocated,
    &score::balanced_allocation::BalancedAllocation,
    &score::pod_topology_spread::PodTopologySpread,
    &score::inter_pod_affinity::InterPodAffinity,
    &score::image_locality::ImageLocality,
];
