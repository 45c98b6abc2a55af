//! Endpoints, the older form of EndpointSlices, which many clients still read: one object per Service, with
//! the same name. Keys come from Services, pods and Endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use master_client::{HandlerGuard, ObjectKey, WorkQueue};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::endpointslice::queue_services_of_pod;
use crate::error::{Error, ignore_already_exists, ignore_not_found, is_namespace_terminating};
use crate::pod_state::{is_ready, node_name};
use crate::service_endpoints::{
    HEADLESS, Port, address_of_family, belongs, families, hostname, is_headless, is_selected, is_selecting,
    ports, publishes_not_ready, target_reference,
};

/// Maximum number of addresses in one object; further ones are left out, and an annotation says so.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

pub(crate) struct EndpointsController {
    context: Context,
}

impl EndpointsController {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    async fn write(&self, key: &ObjectKey, wanted: Endpoints) -> Result<(), Error> {
        let current = self.context.informers.endpoints.cache().get(key);
        let api = self.context.namespaced::<Endpoints>(&key.namespace);
        let Some(current) = current else {
            return match ignore_already_exists(api.create(&PostParams::default(), &wanted).await) {
                Err(error) if is_namespace_terminating(&error) => Ok(()),
                result => Ok(result.map(drop)?),
            };
        };
        let same = current.subsets.clone().unwrap_or_default() == wanted.subsets.clone().unwrap_or_default()
            && current.metadata.labels.clone().unwrap_or_default()
                == wanted.metadata.labels.clone().unwrap_or_default();
        if same {
            return Ok(());
        }
        let mut updated = (*current).clone();
        updated.subsets = wanted.subsets;
        updated.metadata.labels = wanted.metadata.labels;
        let annotations = updated.metadata.annotations.get_or_insert_default();
        annotations.remove(OVER_CAPACITY);
        annotations.extend(wanted.metadata.annotations.unwrap_or_default());
        ignore_not_found(api.replace(&key.name, &PostParams::default(), &updated).await)?;
        Ok(())
    }
}

/// Computes the Endpoints that a Service should have.
fn compute(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let family = families(service).into_iter().next().unwrap_or_default();
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut count = 0;
    for pod in pods {
        let ports = ports(service, pod);
        let Some(ip) = address_of_family(pod, &family) else { continue };
        let wants_ports =
            service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|p| !p.is_empty());
        if wants_ports && ports.is_empty() {
            continue;
        }
        count += 1;
        if count > CAPACITY {
            break;
        }
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: node_name(pod).map(str::to_owned),
            target_ref: Some(target_reference(pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        let list = if publishes_not_ready(service) || is_ready(pod) { ready } else { not_ready };
        list.push(address);
    }
    let subsets: Vec<_> =
        groups.into_iter().map(|(ports, (ready, not_ready))| subset(ports, ready, not_ready)).collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    let over = (count > CAPACITY).then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into());
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: over,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn subset(
    ports: Vec<Port>,
    mut ready: Vec<EndpointAddress>,
    mut not_ready: Vec<EndpointAddress>,
) -> EndpointSubset {
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    ready.sort_by(|left, right| left.ip.cmp(&right.ip));
    not_ready.sort_by(|left, right| left.ip.cmp(&right.ip));
    let ports: Vec<_> = ports
        .into_iter()
        .map(|port| EndpointPort {
            name: Some(port.name).filter(|name| !name.is_empty()),
            port: port.port,
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        })
        .collect();
    EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

#[async_trait]
impl Controller for EndpointsController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn workers(&self) -> usize {
        5
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let informers = &self.context.informers;
        let services = {
            let queue = queue.clone();
            informers.services.add_handler(move |delta| {
                if let Some(service) = delta.object() {
                    queue.add(ObjectKey::of(&**service));
                }
            })
        };
        let endpoints = {
            let queue = queue.clone();
            informers.endpoints.add_handler(move |delta| {
                if let Some(endpoints) = delta.object() {
                    queue.add(ObjectKey::of(&**endpoints));
                }
            })
        };
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            informers
                .pods
                .add_handler(move |delta| queue_services_of_pod(&this.context.informers, delta, &queue))
        };
        vec![services, endpoints, pods]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let informers = &self.context.informers;
        let Some(service) = informers.services.cache().get(key) else {
            let managed = informers.endpoints.cache().get(key).is_some_and(|endpoints| {
                endpoints.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MANAGED_BY))
            });
            if managed {
                let api = self.context.namespaced::<Endpoints>(&key.namespace);
                ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(Reconciled::Done);
        };
        if !is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Reconciled::Done);
        }
        let with_terminating = publishes_not_ready(&service);
        let pods = informers.pods.cache().in_namespace(&key.namespace);
        let pods: Vec<_> = pods
            .into_iter()
            .filter(|pod| is_selected(&service, pod) && belongs(pod, with_terminating))
            .collect();
        self.write(key, compute(&service, &pods)).await?;
        Ok(Reconciled::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_listed_as_ready_or_not_ready_under_their_ports() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
        }))
        .unwrap();
        let pod = |ip: &str, ready: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": ip, "namespace": "d", "uid": ip},
                    "spec": {"containers": []},
                    "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}
                }))
                .unwrap(),
            )
        };
        let endpoints = compute(&service, &[pod("10.0.0.2", "True"), pod("10.0.0.1", "False")]);
        let subsets = endpoints.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
        assert_eq!(compute(&service, &[]).subsets, None);
    }
}
