//! Computes which EndpointSlices a Service should have, as changes to its present ones: with as few writes as
//! possible, at most 100 endpoints and one set of ports per slice. Pure; called by `endpointslice.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::owner::controller_reference;
use crate::pod_state::{is_ready, node_name};
use crate::service_endpoints::{
    HEADLESS, Port, address_of_family, families, hostname, is_headless, ports, publishes_not_ready,
    target_reference,
};

/// Maximum number of endpoints in one slice.
const SLICE_SIZE: usize = 100;
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The writes that bring a Service's slices to the wanted state.
#[derive(Debug, Default)]
pub(super) struct SlicePlan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    /// Names of slices to delete.
    pub delete: Vec<String>,
}

/// Address family and ports that a group of slices shares.
type Group = (String, Vec<Port>);

/// Compares the endpoints that `pods` (selected, with addresses) provide with the existing slices.
pub(super) fn compute(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
    now: &Time,
) -> SlicePlan {
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for family in families(service) {
        for pod in pods {
            let Some(address) = address_of_family(pod, &family) else { continue };
            let group = (family.clone(), ports(service, pod));
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            wanted.entry(group).or_default().insert(uid, endpoint(service, pod, address, zone));
        }
        // A Service without pods still has one, empty, slice.
        if !wanted.keys().any(|(of, _)| *of == family) {
            wanted.insert((family, Vec::new()), BTreeMap::new());
        }
    }
    let mut present: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        present.entry(group_of(slice)).or_default().push(slice);
    }
    let mut plan = SlicePlan::default();
    let labels = labels(service);
    for (group, endpoints) in wanted {
        let slices = present.remove(&group).unwrap_or_default();
        plan_group(&mut plan, service, &labels, &group, endpoints, slices, now);
    }
    for slices in present.into_values() {
        plan.delete.extend(slices.into_iter().filter_map(|slice| slice.metadata.name.clone()));
    }
    plan
}

fn plan_group(
    plan: &mut SlicePlan,
    service: &Service,
    labels: &BTreeMap<String, String>,
    group: &Group,
    mut endpoints: BTreeMap<String, Endpoint>,
    slices: Vec<&EndpointSlice>,
    now: &Time,
) {
    let mut kept: Vec<(EndpointSlice, bool)> = Vec::new();
    for slice in slices {
        let mut updated = slice.clone();
        updated.endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoints.remove(endpoint.target_ref.as_ref()?.uid.as_ref()?))
            .collect();
        let relabeled = merge_labels(&mut updated, labels);
        let changed = updated.endpoints != slice.endpoints;
        kept.push((updated, changed || relabeled));
    }
    let mut left: VecDeque<Endpoint> = endpoints.into_values().collect();
    // Fills slices that are written anyway first, then others with room; new slices take the rest.
    for only_changed in [true, false] {
        for (slice, changed) in kept.iter_mut().filter(|(_, changed)| *changed == only_changed) {
            while slice.endpoints.len() < SLICE_SIZE {
                let Some(endpoint) = left.pop_front() else { break };
                slice.endpoints.push(endpoint);
                *changed = true;
            }
        }
    }
    let any = kept.iter().any(|(slice, _)| !slice.endpoints.is_empty()) || !left.is_empty();
    let mut placeholder = any;
    for (mut slice, changed) in kept {
        if slice.endpoints.is_empty() && placeholder {
            plan.delete.extend(slice.metadata.name);
        } else {
            placeholder |= slice.endpoints.is_empty();
            if changed {
                stamp(&mut slice.metadata, now);
                plan.update.push(slice);
            }
        }
    }
    while !left.is_empty() || !placeholder {
        placeholder = true;
        let endpoints = left.drain(..left.len().min(SLICE_SIZE)).collect();
        plan.create.push(new_slice(service, labels, group, endpoints, now));
    }
}

fn new_slice(
    service: &Service,
    labels: &BTreeMap<String, String>,
    (family, ports): &Group,
    endpoints: Vec<Endpoint>,
    now: &Time,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut metadata = ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels.clone()),
        owner_references: Some(vec![controller_reference(service)]),
        ..ObjectMeta::default()
    };
    stamp(&mut metadata, now);
    let ports = ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    });
    let ports: Vec<_> = ports.collect();
    EndpointSlice {
        address_type: family.clone(),
        endpoints,
        metadata,
        ports: (!ports.is_empty()).then_some(ports),
    }
}

fn stamp(metadata: &mut ObjectMeta, now: &Time) {
    metadata
        .annotations
        .get_or_insert_default()
        .insert(LAST_CHANGE.to_owned(), now.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: &dyn Fn(&str) -> Option<String>) -> Endpoint {
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node = node_name(pod);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(target_reference(pod)),
        zone: node.and_then(zone),
        ..Endpoint::default()
    }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: port.port.unwrap_or_default(),
        app_protocol: port.app_protocol.clone(),
    });
    let mut ports: Vec<_> = ports.collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// Sets the slice's labels; true when they changed.
fn merge_labels(slice: &mut EndpointSlice, labels: &BTreeMap<String, String>) -> bool {
    if slice.metadata.labels.as_ref() == Some(labels) {
        return false;
    }
    slice.metadata.labels = Some(labels.clone());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "s", "labels": {"l": "1"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.7",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        }))
        .unwrap()
    }

    fn pod(number: usize, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": format!("u{number:04}")},
                "spec": {"nodeName": "n1", "containers": []},
                "status": {"phase": "Running", "podIP": format!("10.42.0.{number}"),
                    "conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap(),
        )
    }

    fn plan(pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> SlicePlan {
        let now: Time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        compute(&service(), pods, existing, &|_| Some("zone-a".to_owned()), &now)
    }

    fn stored(plan: SlicePlan) -> Vec<Arc<EndpointSlice>> {
        let named = plan.create.into_iter().enumerate().map(|(number, mut slice)| {
            slice.metadata.name = Some(format!("web-{number}"));
            Arc::new(slice)
        });
        named.collect()
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let slices = stored(plan(&[], &[]));
        assert_eq!(slices.len(), 1);
        assert!(slices[0].endpoints.is_empty() && slices[0].ports.is_none());
        let again = plan(&[], &slices);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
    }

    #[test]
    fn the_first_pod_replaces_the_empty_slice() {
        let slices = stored(plan(&[], &[]));
        let next = plan(&[pod(1, "True")], &slices);
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (1, 0, 1));
        let slice = &next.create[0];
        let endpoint = &slice.endpoints[0];
        assert_eq!(endpoint.addresses, ["10.42.0.1"]);
        assert_eq!(endpoint.zone.as_deref(), Some("zone-a"));
        let conditions = endpoint.conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(true), Some(true), Some(false))
        );
        let labels = slice.metadata.labels.clone().unwrap();
        assert_eq!(labels[SERVICE_NAME], "web");
        assert_eq!(labels[MANAGED_BY], MANAGER);
        assert_eq!(labels["l"], "1");
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    }

    #[test]
    fn more_than_a_hundred_endpoints_fill_several_slices() {
        let pods: Vec<_> = (1..=250).map(|number| pod(number, "True")).collect();
        let slices = stored(plan(&pods, &[]));
        let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let fewer = plan(&pods[..249], &slices);
        assert_eq!((fewer.create.len(), fewer.update.len(), fewer.delete.len()), (0, 1, 0));
    }

    #[test]
    fn a_pod_that_becomes_unready_updates_only_its_slice() {
        let slices = stored(plan(&[pod(1, "True"), pod(2, "True")], &[]));
        let next = plan(&[pod(1, "True"), pod(2, "False")], &slices);
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
        let ready: Vec<_> = next.update[0]
            .endpoints
            .iter()
            .map(|endpoint| endpoint.conditions.as_ref().unwrap().ready.unwrap())
            .collect();
        assert_eq!(ready, [true, false]);
    }

    #[test]
    fn a_terminating_pod_serves_but_is_not_ready() {
        let mut going = (*pod(1, "True")).clone();
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        let slices = stored(plan(&[Arc::new(going)], &[]));
        let conditions = slices[0].endpoints[0].conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
    }
}
