//! Score plugins: they rate the nodes that passed all filters.

pub(crate) mod balanced_allocation;
pub(crate) mod image_locality;
pub(crate) mod inter_pod_affinity;
pub(crate) mod least_allocated;
pub(crate) mod node_affinity;
pub(crate) mod pod_topology_spread;
pub(crate) mod taint_toleration;
