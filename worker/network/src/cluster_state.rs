//! The node's copy of the cluster's Services, EndpointSlices and Nodes, reduced to what routing and DNS
//! need. `watch.rs` fills it from the API; `proxy`, `dns` and `overlay` read it. While the API cannot be
//! reached it keeps its last content.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Node, Service, ServiceSpec},
    discovery::v1::{EndpointConditions, EndpointSlice},
};
use tokio::sync::watch;

/// Namespace and name of an API object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Makes the key of the object `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// Transport protocol of a service or host port. SCTP is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Parses the API's spelling; `None` as input means TCP. Returns `None` for a protocol that is not
    /// supported.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("") | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    /// Returns the lower-case name, as nftables and SRV records spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A Service, reduced to the fields that routing and DNS need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// IPv4 ClusterIP; `None` if the Service has none.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Whether the Service is headless (`clusterIP: None`).
    pub headless: bool,
    /// Target name of a Service of type ExternalName; `None` for other types.
    pub external_name: Option<String>,
    /// Ports whose protocol is supported.
    pub ports: Vec<ServicePortView>,
    /// Addresses from `externalIPs` and the load balancer's ingress.
    pub external_ips: BTreeSet<Ipv4Addr>,
    /// Load balancer addresses among `external_ips`; `source_ranges` applies to these only.
    pub load_balancer_ips: BTreeSet<Ipv4Addr>,
    /// Clients that may reach the load balancer addresses (`loadBalancerSourceRanges`); `None` means all.
    pub source_ranges: Option<BTreeSet<Ipv4Net>>,
    /// Whether `internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// Whether `externalTrafficPolicy` is `Local`.
    pub external_local: bool,
    /// Timeout of `sessionAffinity: ClientIP` in seconds; `None` without session affinity.
    pub affinity_seconds: Option<u32>,
    /// Whether the label `service.kubernetes.io/service-proxy-name` is set: another proxy routes the
    /// Service.
    pub foreign_proxy: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortView {
    /// Port name; empty if it has none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the ClusterIP.
    pub port: u16,
    /// Port on every node; `None` if the Service has no node port.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of IPv4 addresses, reduced to the fields that routing and DNS need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceView {
    /// Ports: name, protocol and number.
    pub ports: Vec<(String, Protocol, u16)>,
    /// Endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// The endpoint's first address (further ones are not used, as in kube-proxy).
    pub ip: Ipv4Addr,
    /// Condition `ready`; true if not set.
    pub ready: bool,
    /// Condition `serving`, which a terminating endpoint may still have; the value of `ready` if not set.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// Node that the endpoint runs on; `None` if not known.
    pub node: Option<Arc<str>>,
    /// The endpoint's hostname, a DNS label; `None` if it has none.
    pub hostname: Option<String>,
}

/// A Node, reduced to the fields that the overlay needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// First IPv4 InternalIP; `None` if there is none.
    pub ip: Option<Ipv4Addr>,
    /// IPv4 podCIDR; `None` until it is assigned.
    pub pod_cidr: Option<Ipv4Net>,
}

/// Content of [`ClusterState`].
#[derive(Debug, Default)]
pub struct ClusterContent {
    /// Services by key.
    pub services: BTreeMap<ObjectKey, Arc<ServiceView>>,
    /// EndpointSlices by the key of their Service, then by slice name.
    pub slices: BTreeMap<ObjectKey, BTreeMap<Arc<str>, Arc<SliceView>>>,
    /// Nodes by name.
    pub nodes: BTreeMap<Arc<str>, NodeView>,
    /// Key of the Service that has each ClusterIP, for reverse lookups.
    pub by_cluster_ip: BTreeMap<Ipv4Addr, ObjectKey>,
    /// Key of the Service that each EndpointSlice belongs to.
    pub(crate) owners: BTreeMap<ObjectKey, ObjectKey>,
    /// Whether all Services have been listed at least once.
    pub services_listed: bool,
    /// Whether all EndpointSlices have been listed at least once.
    pub slices_listed: bool,
    /// Whether all Nodes have been listed at least once.
    pub nodes_listed: bool,
}

impl ClusterContent {
    /// Returns whether Services and EndpointSlices have been listed, so that routing and DNS are complete.
    pub fn routable(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// Adds or replaces a Service; returns whether that changed anything.
    pub fn put_service(&mut self, key: ObjectKey, view: ServiceView) -> bool {
        if self.services.get(&key).is_some_and(|held| **held == view) {
            return false;
        }
        self.forget_service(&key);
        if let Some(ip) = view.cluster_ip {
            self.by_cluster_ip.insert(ip, key.clone());
        }
        self.services.insert(key, Arc::new(view));
        true
    }

    /// Removes a Service; returns whether it existed.
    pub fn forget_service(&mut self, key: &ObjectKey) -> bool {
        let Some(old) = self.services.remove(key) else { return false };
        if let Some(ip) = old.cluster_ip
            && self.by_cluster_ip.get(&ip) == Some(key)
        {
            self.by_cluster_ip.remove(&ip);
        }
        true
    }

    /// Adds or replaces a slice; `service` is the Service it belongs to, if any. Returns whether that
    /// changed anything.
    pub fn put_slice(&mut self, slice: ObjectKey, service: Option<ObjectKey>, view: SliceView) -> bool {
        let moved = self.owners.get(&slice) != service.as_ref() && self.forget_slice(&slice);
        let Some(service) = service else { return moved };
        let slices = self.slices.entry(service.clone()).or_default();
        if slices.get(&slice.name).is_some_and(|held| **held == view) {
            return moved;
        }
        slices.insert(slice.name.clone(), Arc::new(view));
        self.owners.insert(slice, service);
        true
    }

    /// Removes a slice; returns whether it existed.
    pub fn forget_slice(&mut self, slice: &ObjectKey) -> bool {
        let Some(service) = self.owners.remove(slice) else { return false };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        true
    }

    /// Adds or replaces a Node; returns whether that changed anything.
    pub fn put_node(&mut self, name: Arc<str>, view: NodeView) -> bool {
        self.nodes.insert(name, view.clone()) != Some(view)
    }

    /// Returns the keys of all Services.
    pub(crate) fn service_keys(&self) -> BTreeSet<ObjectKey> {
        self.services.keys().cloned().collect()
    }

    /// Returns the keys of all slices.
    pub(crate) fn slice_keys(&self) -> BTreeSet<ObjectKey> {
        self.owners.keys().cloned().collect()
    }
}

/// Shared, observable [`ClusterContent`]. Changes of routing and of Nodes are observed separately: thousands
/// of Nodes report their status, which must not wake the observers of routing.
#[derive(Clone, Debug)]
pub struct ClusterState {
    content: Arc<RwLock<ClusterContent>>,
    routing: Arc<watch::Sender<u64>>,
    nodes: Arc<watch::Sender<u64>>,
}

/// Part of the content that a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Services and EndpointSlices.
    Routing,
    /// Nodes.
    Nodes,
}

impl Default for ClusterState {
    fn default() -> Self {
        let version = || Arc::new(watch::Sender::new(0));
        Self { content: Arc::default(), routing: version(), nodes: version() }
    }
}

impl ClusterState {
    /// Locks the content for reading; hold the guard only briefly and never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, ClusterContent> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the content; notifies the observers of `concern` if `change` returns true.
    pub fn change(&self, concern: Concern, change: impl FnOnce(&mut ClusterContent) -> bool) {
        let changed = change(&mut self.content.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.version(concern).send_modify(|version| *version += 1);
        }
    }

    /// Returns a receiver that is marked changed after every change of this concern.
    pub fn observe(&self, concern: Concern) -> watch::Receiver<u64> {
        self.version(concern).subscribe()
    }

    fn version(&self, concern: Concern) -> &watch::Sender<u64> {
        match concern {
            Concern::Routing => &self.routing,
            Concern::Nodes => &self.nodes,
        }
    }
}

impl ServiceView {
    /// Reduces a Service to its view.
    pub fn from_api(service: &Service) -> Self {
        let Some(spec) = &service.spec else { return Self::default() };
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            return Self { external_name: spec.external_name.clone(), ..Self::default() };
        }
        let external = kind == "NodePort" || kind == "LoadBalancer";
        let ingress = service
            .status
            .iter()
            .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
            .flatten()
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok());
        let load_balancer_ips: BTreeSet<Ipv4Addr> = ingress.collect();
        Self {
            cluster_ip: ipv4_of(spec.cluster_ips.as_deref(), spec.cluster_ip.as_deref()),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            external_name: None,
            ports: spec
                .ports
                .iter()
                .flatten()
                .filter_map(|port| {
                    Some(ServicePortView {
                        name: port.name.clone().unwrap_or_default(),
                        protocol: Protocol::parse(port.protocol.as_deref())?,
                        port: u16::try_from(port.port).ok()?,
                        node_port: port
                            .node_port
                            .filter(|_| external)
                            .and_then(|port| u16::try_from(port).ok())
                            .filter(|port| *port != 0),
                    })
                })
                .collect(),
            external_ips: spec
                .external_ips
                .iter()
                .flatten()
                .filter_map(|ip| ip.parse().ok())
                .chain(load_balancer_ips.iter().copied())
                .collect(),
            load_balancer_ips,
            source_ranges: source_ranges(spec),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            affinity_seconds: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                spec.session_affinity_config
                    .as_ref()
                    .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
                    .and_then(|seconds| u32::try_from(seconds).ok())
                    .unwrap_or(10_800)
            }),
            foreign_proxy: service
                .metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name")),
        }
    }
}

impl SliceView {
    /// Reduces an EndpointSlice to its view; `None` for a slice of another address type than IPv4.
    pub fn from_api(slice: &EndpointSlice) -> Option<Self> {
        if slice.address_type != "IPv4" {
            return None;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some((
                port.name.clone().unwrap_or_default(),
                Protocol::parse(port.protocol.as_deref())?,
                u16::try_from(port.port?).ok()?,
            ))
        });
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            let unknown = EndpointConditions::default();
            let conditions = endpoint.conditions.as_ref().unwrap_or(&unknown);
            let ready = conditions.ready.unwrap_or(true);
            Some(EndpointView {
                ip: endpoint.addresses.first()?.parse().ok()?,
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.as_deref().map(Arc::from),
                hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            })
        });
        Some(Self { ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

impl NodeView {
    /// Reduces a Node to its view.
    pub fn from_api(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        Self {
            ip: addresses
                .into_iter()
                .flatten()
                .filter(|address| address.type_ == "InternalIP")
                .find_map(|address| address.address.parse().ok()),
            pod_cidr: spec
                .and_then(|spec| {
                    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).find_map(|cidr| cidr.parse().ok())
                })
                .map(|cidr: Ipv4Net| cidr.trunc()),
        }
    }
}

/// Returns the IPv4 ranges of `loadBalancerSourceRanges`; `None` if the list is empty. A list without IPv4
/// ranges admits no IPv4 client.
fn source_ranges(spec: &ServiceSpec) -> Option<BTreeSet<Ipv4Net>> {
    let ranges = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty())?;
    Some(
        ranges
            .iter()
            .filter_map(|range| range.trim().parse().ok())
            .map(|range: Ipv4Net| range.trunc())
            .collect(),
    )
}

fn ipv4_of(many: Option<&[String]>, one: Option<&str>) -> Option<Ipv4Addr> {
    many.into_iter().flatten().map(String::as_str).chain(one).find_map(|ip| ip.parse().ok())
}
