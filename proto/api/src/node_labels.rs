//! The Kubernetes labels that a node may set on its own Node (`k8s.io/kubelet/pkg/apis`). Other labels of
//! Kubernetes steer pods and may be set only by operators: NodeRestriction in the API server refuses them,
//! and a worker refuses to start with them. Also the annotation by which masters know Ephor's agents.

/// Annotation of a Node whose agent sends heartbeats ("beats") to the masters, with the value `true`. Masters
/// call such a node silent when its beats stop, and another one when its Lease and status stay as they are.
pub const SENDS_BEATS: &str = "ephor.dev/sends-beats";

/// Labels that a node may set although they belong to Kubernetes.
const ALLOWED: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Domains of Kubernetes under which a node may set any label.
const ALLOWED_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Returns whether a node may set, change or remove a label of its own Node.
pub fn may_be_set_by_node(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let within =
        |domain: &str| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    !of_kubernetes || ALLOWED.contains(&key) || ALLOWED_DOMAINS.iter().any(|domain| within(domain))
}

#[cfg(test)]
mod tests {
    use super::may_be_set_by_node;

    #[test]
    fn labels_of_kubernetes_are_the_operators_but_for_those_of_the_kubelet() {
        for free in [
            "app",
            "example.com/team",
            "notkubernetes.io/a",
            "kubernetes.io/hostname",
            "node.kubernetes.io/anything",
            "a.kubelet.kubernetes.io/b",
            "topology.kubernetes.io/zone",
        ] {
            assert!(may_be_set_by_node(free), "{free}");
        }
        for forbidden in [
            "node-restriction.kubernetes.io/pci",
            "a.node-restriction.kubernetes.io/b",
            "node-role.kubernetes.io/control-plane",
            "kubernetes.io/other",
            "x.k8s.io/y",
        ] {
            assert!(!may_be_set_by_node(forbidden), "{forbidden}");
        }
    }
}
