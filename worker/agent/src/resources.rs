//! Converts requests and limits to kernel settings (CPU shares and quota, OOM score, cgroup names), and
//! computes the QoS class and the sums that node admission compares.

use std::collections::BTreeMap;

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use worker_volumes::amounts;

use crate::pod;

const CPU_PERIOD_MICROS: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA_MICROS: i64 = 1000;

/// Amounts by resource name: thousandths of a core for `cpu`, whole units for the rest.
pub type Amounts = BTreeMap<String, i64>;

/// Quality-of-service class, from the pods killed last to those killed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has CPU and memory limits equal to its requests.
    Guaranteed,
    /// Some container has a CPU or memory request or limit, but the pod is not Guaranteed.
    Burstable,
    /// No container has a CPU or memory request or limit.
    BestEffort,
}

impl Qos {
    /// Returns the name used in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Converts the quantity of a resource to the unit of [`Amounts`]; 0 if it does not parse.
pub fn amount(resource: &str, quantity: &Quantity) -> i64 {
    let parsed = if resource == "cpu" { amounts::milli(quantity) } else { amounts::whole(quantity) };
    parsed.unwrap_or(0)
}

fn requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let mut amounts = Amounts::new();
    // A limit without a request counts as the request (API defaulting does this too, but not for pods built
    // in tests).
    for map in [resources.and_then(|r| r.limits.as_ref()), resources.and_then(|r| r.requests.as_ref())] {
        amounts.extend(map.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))));
    }
    amounts
}

fn limits(container: &Container) -> Amounts {
    let map = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    map.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect()
}

/// Computes the QoS class of a pod.
pub fn qos(pod: &Pod) -> Qos {
    let spec = pod::spec(pod);
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let relevant =
        |amounts: &Amounts| ["cpu", "memory"].iter().any(|r| amounts.get(*r).is_some_and(|a| *a > 0));
    if !containers().any(|c| relevant(&requests(c)) || relevant(&limits(c))) {
        return Qos::BestEffort;
    }
    let guaranteed = containers().all(|c| {
        let (requests, limits) = (requests(c), limits(c));
        ["cpu", "memory"]
            .iter()
            .all(|r| limits.get(*r).is_some_and(|l| *l > 0) && requests.get(*r) == limits.get(*r))
    });
    if guaranteed { Qos::Guaranteed } else { Qos::Burstable }
}

/// Sums the requests of a pod: its containers and sidecars, or its largest init step if greater, plus
/// overhead.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    aggregate(spec, requests)
}

/// Sums the limits of a pod by the rule of [`pod_requests`].
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    aggregate(spec, limits)
}

fn aggregate(spec: &PodSpec, of: fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    let mut sidecars = Amounts::new();
    let mut largest_init = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        add(&mut step, &sidecars);
        if pod::is_sidecar(container) {
            add(&mut sidecars, &of(container));
            add(&mut total, &of(container));
        }
        for (name, value) in step {
            let largest = largest_init.entry(name).or_default();
            *largest = (*largest).max(value);
        }
    }
    for (name, value) in largest_init {
        let sum = total.entry(name).or_default();
        *sum = (*sum).max(value);
    }
    let overhead = spec.overhead.iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect();
    add(&mut total, &overhead);
    total
}

/// Adds the amounts of `more` to `total`, by name.
pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, value) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*value);
    }
}

/// Converts a CPU request in thousandths of a core to CPU shares.
pub fn cpu_shares(milli: i64) -> i64 {
    if milli <= 0 {
        return MIN_SHARES;
    }
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Converts a CPU limit in thousandths of a core to a CFS quota in microseconds.
pub fn cpu_quota(milli: i64) -> i64 {
    (milli.saturating_mul(CPU_PERIOD_MICROS) / 1000).max(MIN_QUOTA_MICROS)
}

/// Builds the Linux resources of a container.
pub fn container_resources(pod: &Pod, container: &Container, node_memory: i64) -> LinuxContainerResources {
    let (requests, limits) = (requests(container), limits(container));
    let mut resources = LinuxContainerResources {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        memory_limit_in_bytes: limits.get("memory").copied().unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, &requests, node_memory),
        ..Default::default()
    };
    if let Some(limit) = limits.get("cpu").filter(|limit| **limit > 0) {
        resources.cpu_period = CPU_PERIOD_MICROS;
        resources.cpu_quota = cpu_quota(*limit);
    }
    resources
}

/// Builds the Linux resources of the whole pod's cgroup.
pub fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    let spec = pod::spec(pod);
    let (requests, limits) = (pod_requests(spec), pod_limits(spec));
    let mut resources = LinuxContainerResources {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        ..Default::default()
    };
    let all_limit =
        |name: &str| spec.containers.iter().all(|c| self::limits(c).get(name).is_some_and(|l| *l > 0));
    if all_limit("cpu") {
        resources.cpu_period = CPU_PERIOD_MICROS;
        resources.cpu_quota = cpu_quota(limits.get("cpu").copied().unwrap_or(0));
    }
    if all_limit("memory") {
        resources.memory_limit_in_bytes = limits.get("memory").copied().unwrap_or(0);
    }
    resources
}

/// Computes the OOM score adjustment: Guaranteed pods are killed last, BestEffort ones first, Burstable ones
/// by the share of the node's memory they request.
fn oom_score_adj(pod: &Pod, requests: &Amounts, node_memory: i64) -> i64 {
    if pod::spec(pod).priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let memory = requests.get("memory").copied().unwrap_or(0);
            let share = if node_memory > 0 { i128::from(memory) * 1000 / i128::from(node_memory) } else { 0 };
            let adjusted = 1000 - i64::try_from(share).unwrap_or(1000);
            adjusted.clamp(3, 999)
        }
    }
}

/// Returns the pod's cgroup path below `root`, named as by kubelet with the cgroupfs driver.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let root = root.trim_end_matches('/');
    let uid = pod::uid(pod);
    match qos(pod) {
        Qos::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos(&pod(json!([{"name": "a"}]))), Qos::BestEffort);
        let guaranteed = pod(json!([{"name": "a", "resources": {"limits": both, "requests": both}}]));
        assert_eq!(qos(&guaranteed), Qos::Guaranteed);
        assert_eq!(cgroup_parent("/x/", &guaranteed), "/x/kubepods/podu");
        let burstable = pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]));
        assert_eq!(qos(&burstable), Qos::Burstable);
        assert_eq!(cgroup_parent("", &burstable), "/kubepods/burstable/podu");
    }

    #[test]
    fn a_container_gets_shares_quota_memory_and_oom_score() {
        let resources = json!({"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}});
        let pod = pod(json!([{"name": "a", "resources": resources}]));
        let linux = container_resources(&pod, &pod::spec(&pod).containers[0], 4 << 30);
        assert_eq!((linux.cpu_shares, linux.cpu_quota, linux.cpu_period), (256, 50_000, 100_000));
        assert_eq!((linux.memory_limit_in_bytes, linux.oom_score_adj), (1 << 30, 875));
    }

    #[test]
    fn amounts_beyond_every_machine_are_capped() {
        let endless = json!({"requests": {"cpu": "1e99", "memory": "1e99"}, "limits": {"cpu": "1e99", "memory": "1e99"}});
        let container = |name: &str| json!({"name": name, "resources": endless});
        let pod = pod(json!([container("a"), container("b")]));
        assert_eq!(pod_requests(pod::spec(&pod)).get("memory"), Some(&i64::MAX));
        let linux = pod_resources(&pod);
        assert_eq!(linux.cpu_shares, MAX_SHARES);
        assert!(linux.cpu_quota > 0 && linux.memory_limit_in_bytes > 0, "{linux:?}");
    }

    #[test]
    fn init_steps_count_by_their_largest_and_sidecars_stay() {
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                {"name": "i", "resources": {"requests": {"cpu": "4"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}))
        .unwrap();
        assert_eq!(pod_requests(&spec).get("cpu"), Some(&5000));
    }
}
