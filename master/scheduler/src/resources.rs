//! Amounts of resources: what pods request and what nodes provide. Pure; used by `snapshot.rs` and the
//! plugins.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as RawQuantity;
use proto_api::quantity::Quantity;

/// CPU request that scoring assumes for a container without one, in thousandths of a core.
const DEFAULT_CPU_MILLI: i64 = 100;
/// Memory request that scoring assumes for a container without one, in bytes.
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts by resource: CPU in thousandths of a core, all others in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    /// Amounts of extended resources and huge pages.
    pub others: BTreeMap<String, i64>,
}

type List = BTreeMap<String, RawQuantity>;

impl Resources {
    /// Converts a resource list of the API; `pods` is left out, since pods do not request it.
    pub fn of(list: &List) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            // The API server accepts only valid quantities.
            let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => resources.cpu_milli = quantity.milli_value(),
                "memory" => resources.memory_bytes = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_bytes = quantity.value(),
                "pods" => {}
                other => {
                    resources.others.insert(other.to_owned(), quantity.value());
                }
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
        self.others.retain(|_, amount| *amount != 0);
    }

    /// Whether an amount is the largest there is: a sum may then be more than it says.
    pub fn is_saturated(&self) -> bool {
        let fixed = [self.cpu_milli, self.memory_bytes, self.ephemeral_bytes];
        fixed.iter().chain(self.others.values()).any(|amount| *amount == i64::MAX)
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.cpu_milli = with(self.cpu_milli, other.cpu_milli);
        self.memory_bytes = with(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = with(self.ephemeral_bytes, other.ephemeral_bytes);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = with(*own, *amount);
        }
    }
}

/// Computes a pod's request: the larger of all its containers together and of its init containers one after
/// the other, with sidecars counted in both, plus the overhead of its runtime class.
pub(crate) fn request(spec: &PodSpec) -> Resources {
    total(spec, requests)
}

/// Computes [`request`] with defaults for missing requests, so that scoring does not count such pods as free.
pub(crate) fn scoring_request(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        let mut resources = requests(container);
        let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let asks = |name: &str| list.is_some_and(|list| list.contains_key(name));
        if !asks("cpu") {
            resources.cpu_milli = DEFAULT_CPU_MILLI;
        }
        if !asks("memory") {
            resources.memory_bytes = DEFAULT_MEMORY_BYTES;
        }
        resources
    })
}

fn requests(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.map(Resources::of).unwrap_or_default()
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&of(container));
            starting.raise_to(&sidecars);
        } else {
            let mut step = of(container);
            step.add(&sidecars);
            starting.raise_to(&step);
        }
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(list) = pod_level {
        let level = Resources::of(list);
        if list.contains_key("cpu") {
            running.cpu_milli = level.cpu_milli;
        }
        if list.contains_key("memory") {
            running.memory_bytes = level.memory_bytes;
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn init_containers_count_one_by_one_and_sidecars_with_all() {
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        let spec = spec(json!({
            "initContainers": [container("1"), sidecar, container("900m")],
            "containers": [container("300m"), container("400m")],
            "overhead": {"cpu": "10m"}
        }));
        // Start-up needs 900m beside the sidecar's 200m; running needs 300m + 400m + 200m.
        assert_eq!(request(&spec).cpu_milli, 1110);
    }

    #[test]
    fn scoring_takes_nothing_for_free() {
        let spec = spec(json!({"containers": [{"name": "a"}, container("50m")]}));
        assert_eq!(request(&spec).cpu_milli, 50);
        assert_eq!(scoring_request(&spec).cpu_milli, 150);
        assert_eq!(scoring_request(&spec).memory_bytes, 2 * DEFAULT_MEMORY_BYTES);
    }

    #[test]
    fn what_is_added_can_be_taken_away_again() {
        let list: List =
            serde_json::from_value(json!({"cpu": "1500m", "memory": "1Gi", "x/gpu": "2"})).unwrap();
        let resources = Resources::of(&list);
        assert_eq!((resources.cpu_milli, resources.memory_bytes), (1500, 1 << 30));
        let mut sum = resources.clone();
        sum.add(&resources);
        assert_eq!(sum.others["x/gpu"], 4);
        sum.subtract(&resources);
        sum.subtract(&resources);
        assert_eq!(sum, Resources::default());
    }
}
