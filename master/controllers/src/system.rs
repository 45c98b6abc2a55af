//! Maintains what every cluster has from its first minute: the system namespaces, Service
//! `default/kubernetes` with the healthy masters behind it, and Service `kube-system/kube-dns`. One key for
//! each; reconciled on every change of the masters or of the objects, and at an interval.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Namespace, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use master_client::{HandlerGuard, WorkQueue};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_already_exists};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const KUBERNETES: &str = "kubernetes";
/// Port of Service `default/kubernetes`.
const HTTPS: i32 = 443;
/// Interval of checks without a change, which also restore objects whose deletion the caches missed.
const CHECK: Duration = Duration::from_secs(10);
/// Standard label that tells the service proxy to ignore a Service: DNS is answered on every node
/// at the ClusterIP itself.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The parts of the system that this controller maintains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Namespaces,
    Kubernetes,
    Dns,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

pub(crate) struct SystemController {
    context: Context,
}

impl SystemController {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    async fn namespaces(&self) -> Result<(), Error> {
        let cache = self.context.informers.namespaces.cache();
        for name in NAMESPACES.into_iter().filter(|name| cache.find("", name).is_none()) {
            let namespace = Namespace {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                ..Namespace::default()
            };
            ignore_already_exists(self.context.all().create(&PostParams::default(), &namespace).await)?;
        }
        Ok(())
    }

    async fn service(&self, wanted: Service) -> Result<(), Error> {
        let namespace = wanted.metadata.namespace.clone().unwrap_or_default();
        let name = wanted.metadata.name.clone().unwrap_or_default();
        if self.context.informers.services.cache().find(&namespace, &name).is_some() {
            return Ok(());
        }
        let services = self.context.namespaced::<Service>(&namespace);
        ignore_already_exists(services.create(&PostParams::default(), &wanted).await)?;
        Ok(())
    }

    async fn kubernetes(&self) -> Result<(), Error> {
        let mut masters: Vec<SocketAddr> = self.context.config.masters.borrow().clone();
        masters.sort();
        let port = masters.first().map_or(6443, |master| i32::from(master.port()));
        self.service(kubernetes_service(&self.context.config.api_service_ip.to_string(), port)).await?;
        // An empty list means that the information is wrong, not that there is no master.
        if masters.is_empty() {
            return Ok(());
        }
        self.endpoints(kubernetes_endpoints(&masters)).await?;
        self.slice(kubernetes_slice(&masters)).await
    }

    async fn endpoints(&self, wanted: Endpoints) -> Result<(), Error> {
        let api = self.context.namespaced::<Endpoints>("default");
        let cached = self.context.informers.endpoints.cache().find("default", KUBERNETES);
        let Some(current) = cached else {
            ignore_already_exists(api.create(&PostParams::default(), &wanted).await)?;
            return Ok(());
        };
        if current.subsets != wanted.subsets {
            let updated = Endpoints { subsets: wanted.subsets, ..(*current).clone() };
            api.replace(KUBERNETES, &PostParams::default(), &updated).await?;
        }
        Ok(())
    }

    async fn slice(&self, wanted: EndpointSlice) -> Result<(), Error> {
        let api = self.context.namespaced::<EndpointSlice>("default");
        let cached = self.context.informers.endpoint_slices.cache().find("default", KUBERNETES);
        let Some(current) = cached else {
            ignore_already_exists(api.create(&PostParams::default(), &wanted).await)?;
            return Ok(());
        };
        if current.endpoints != wanted.endpoints || current.ports != wanted.ports {
            let updated =
                EndpointSlice { endpoints: wanted.endpoints, ports: wanted.ports, ..(*current).clone() };
            api.replace(KUBERNETES, &PostParams::default(), &updated).await?;
        }
        Ok(())
    }
}

fn meta(namespace: &str, name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

fn kubernetes_service(ip: &str, target_port: i32) -> Service {
    Service {
        metadata: meta("default", KUBERNETES, &[("component", "apiserver"), ("provider", "kubernetes")]),
        spec: Some(ServiceSpec {
            cluster_ip: Some(ip.to_owned()),
            cluster_ips: Some(vec![ip.to_owned()]),
            ip_family_policy: Some("SingleStack".to_owned()),
            ip_families: Some(vec!["IPv4".to_owned()]),
            internal_traffic_policy: Some("Cluster".to_owned()),
            session_affinity: Some("None".to_owned()),
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some("https".to_owned()),
                port: HTTPS,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::Int(target_port)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn dns_service(ip: &str) -> Service {
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.to_owned()),
        port: 53,
        protocol: Some(protocol.to_owned()),
        target_port: Some(IntOrString::Int(53)),
        ..ServicePort::default()
    };
    let labels = [
        ("k8s-app", "kube-dns"),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
        (SERVICE_PROXY_NAME, "ephor-node-dns"),
    ];
    Service {
        metadata: meta("kube-system", "kube-dns", &labels),
        spec: Some(ServiceSpec {
            cluster_ip: Some(ip.to_owned()),
            cluster_ips: Some(vec![ip.to_owned()]),
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn kubernetes_endpoints(masters: &[SocketAddr]) -> Endpoints {
    // One subset per port: masters of a test cluster may share an address and differ in their ports.
    let mut by_port: BTreeMap<u16, Vec<EndpointAddress>> = BTreeMap::new();
    for master in masters {
        let address = EndpointAddress { ip: master.ip().to_string(), ..EndpointAddress::default() };
        by_port.entry(master.port()).or_default().push(address);
    }
    let subsets = by_port.into_iter().map(|(port, addresses)| EndpointSubset {
        addresses: Some(addresses),
        not_ready_addresses: None,
        ports: Some(vec![EndpointPort {
            name: Some("https".to_owned()),
            port: i32::from(port),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]),
    });
    let labels = [("endpointslice.kubernetes.io/skip-mirror", "true")];
    Endpoints { metadata: meta("default", KUBERNETES, &labels), subsets: Some(subsets.collect()) }
}

fn kubernetes_slice(masters: &[SocketAddr]) -> EndpointSlice {
    let port = masters.first().map_or(6443, SocketAddr::port);
    let endpoints = masters.iter().filter(|master| master.port() == port).map(|master| Endpoint {
        addresses: vec![master.ip().to_string()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        ..Endpoint::default()
    });
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: endpoints.collect(),
        metadata: meta("default", KUBERNETES, &[("kubernetes.io/service-name", KUBERNETES)]),
        ports: Some(vec![SlicePort {
            name: Some("https".to_owned()),
            port: Some(i32::from(port)),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]),
    }
}

#[async_trait]
impl Controller for SystemController {
    type Key = Part;

    fn name(&self) -> &'static str {
        "system"
    }

    fn workers(&self) -> usize {
        2
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<Part>>) -> Vec<HandlerGuard> {
        for part in [Part::Namespaces, Part::Kubernetes, Part::Dns] {
            queue.add(part);
        }
        // Ends when the channel of masters closes or, at the latest, with the leadership.
        let (mut masters, shutdown) = (self.context.config.masters.clone(), self.context.shutdown.clone());
        let changes = queue.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    changed = masters.changed() => if changed.is_err() { return },
                }
                changes.add(Part::Kubernetes);
            }
        });
        let services = {
            let queue = queue.clone();
            self.context.informers.services.add_handler(move |delta| {
                if let (Some(old), None) = (delta.old, delta.new) {
                    match old.metadata.name.as_deref() {
                        Some(KUBERNETES) => queue.add(Part::Kubernetes),
                        Some("kube-dns") => queue.add(Part::Dns),
                        _ => {}
                    }
                }
            })
        };
        vec![services]
    }

    async fn reconcile(&self, key: &Part) -> Result<Reconciled, Error> {
        match key {
            Part::Namespaces => self.namespaces().await?,
            Part::Kubernetes => self.kubernetes().await?,
            Part::Dns => self.service(dns_service(&self.context.config.dns_service_ip.to_string())).await?,
        }
        Ok(Reconciled::After(CHECK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_master_is_an_endpoint_of_default_kubernetes() {
        let masters: Vec<SocketAddr> =
            ["10.0.0.1:6443", "10.0.0.2:6443"].iter().map(|address| address.parse().unwrap()).collect();
        let slice = kubernetes_slice(&masters);
        let addresses: Vec<_> =
            slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()).collect();
        assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"]);
        let endpoints = kubernetes_endpoints(&masters);
        let subsets = endpoints.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 6443);
    }
}
