//! Allocation of cluster IPs and node ports of Services. Each taken address or port is a key of its own in
//! the store, put and deleted in the transaction that writes the Service, so that no two Services can hold
//! the same one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proto_api::field::{ErrorList, Path};
use proto_api::status::Status;
use serde_json::{Value, json};
use storage::{Mutation, Precondition, Store};

use super::super::check::{Report, text_list};
use super::super::ip;
use super::super::json_fields::{self, JsonFields, items_mut, set};
use super::{NONE, needs_health_port, type_of};
use crate::registry::strategy::{AllocationContext, Allocations, ObjectChange};

/// Prefix of the keys of taken addresses; outside `/registry/`, so that no list or watch of a kind includes
/// them.
const ADDRESSES: &str = "/allocations/clusterips/";
/// Prefix of the keys of taken node ports.
const PORTS: &str = "/allocations/nodeports/";

/// Finds free addresses and ports for one change: free are those without a key in the store that this change
/// has not taken either.
struct Allocator<'a, 'b> {
    ctx: &'a AllocationContext<'b>,
    owner: String,
    name: String,
    taken: BTreeSet<String>,
    out: Allocations,
}

/// Allocates and releases addresses and ports for one change; writes those it chose into the new object.
pub fn allocate(ctx: &AllocationContext<'_>, change: ObjectChange<'_>) -> Result<Allocations, Status> {
    let mut allocator = Allocator {
        ctx,
        owner: String::new(),
        name: String::new(),
        taken: BTreeSet::new(),
        out: Allocations::default(),
    };
    match change {
        ObjectChange::Create { new } => {
            allocator.for_object(new);
            allocator.addresses(new)?;
            allocator.node_ports(new, &BTreeSet::new())?;
            allocator.health_port(new)?;
        }
        ObjectChange::Update { new, old } => {
            allocator.for_object(new);
            allocator.update(new, old)?;
        }
        ObjectChange::Delete { old } => {
            for key in held(old) {
                allocator.release(key);
            }
        }
    }
    Ok(allocator.out)
}

/// Returns the keys of the addresses and ports a Service holds.
fn held(service: &Value) -> BTreeSet<String> {
    let spec = service.sub("spec");
    let mut out: BTreeSet<String> = ports_of(spec).into_iter().map(port_key).collect();
    if type_of(service) != "ExternalName" {
        let addresses = spec.texts("clusterIPs").into_iter().filter(|a| !matches!(*a, "" | NONE));
        out.extend(addresses.filter_map(ip::parse).map(address_key));
    }
    if needs_health_port(service) && spec.int("healthCheckNodePort") != 0 {
        out.insert(port_key(spec.int("healthCheckNodePort")));
    }
    out
}

fn ports_of(spec: &Value) -> BTreeSet<i64> {
    spec.items("ports").iter().map(|p| p.int("nodePort")).filter(|p| *p != 0).collect()
}

fn address_key(address: IpAddr) -> String {
    format!("{ADDRESSES}{address}")
}

fn port_key(port: i64) -> String {
    format!("{PORTS}{port}")
}

fn spec_mut(service: &mut Value) -> Option<&mut Value> {
    service.get_mut("spec")
}

impl Allocator<'_, '_> {
    fn for_object(&mut self, obj: &Value) {
        self.name = json_fields::name(obj).to_owned();
        self.owner = format!("{}/{}", json_fields::namespace(obj), self.name);
    }

    fn is_taken(&self, key: &str) -> bool {
        is_stored(self.ctx.store, key) || self.taken.contains(key)
    }

    fn take(&mut self, key: String) {
        self.out.preconditions.push(Precondition::Absent(key.clone()));
        let value = json!({"service": self.owner}).to_string().into_bytes().into();
        self.out.mutations.push(Mutation::Put { key: key.clone(), value });
        self.taken.insert(key);
    }

    fn release(&mut self, key: String) {
        // A key that is missing already, for example after a restore from an older backup, must not make the
        // release fail.
        if is_stored(self.ctx.store, &key) {
            self.out.mutations.push(Mutation::Delete { key });
        }
    }

    fn invalid(&self, path: &Path, value: impl Into<Value>, detail: &str) -> Status {
        let mut errs = ErrorList::default();
        errs.invalid(path, value, detail);
        Status::invalid("", "Service", &self.name, errs)
    }

    fn update(&mut self, new: &mut Value, old: &Value) -> Result<(), Status> {
        let before = held(old);
        if type_of(old) == "ExternalName" || old.sub("spec").items("clusterIPs").is_empty() {
            self.addresses(new)?;
        }
        self.node_ports(new, &ports_of(old.sub("spec")))?;
        if !needs_health_port(old) {
            self.health_port(new)?;
        }
        let now = held(new);
        for key in before.difference(&now) {
            self.release(key.clone());
        }
        Ok(())
    }

    /// Takes the cluster IPs the Service asks for, or a free one for each family.
    fn addresses(&mut self, service: &mut Value) -> Result<(), Status> {
        let path = Path::new("spec").child("clusterIPs");
        if type_of(service) == "ExternalName" {
            return Ok(());
        }
        let Some(spec) = spec_mut(service) else { return Ok(()) };
        let mut list: Vec<String> = spec.texts("clusterIPs").into_iter().map(str::to_owned).collect();
        if list.first().is_some_and(|a| a == NONE) {
            return Ok(());
        }
        let shown = list.clone();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        list.resize(list.len().max(1), String::new());
        for address in &mut list {
            if address.is_empty() {
                let free = self
                    .free_address()
                    .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
                *address = free.to_string();
                self.take(address_key(free));
                continue;
            }
            if let Err(detail) = self.take_address(address) {
                let detail = format!("failed to allocate IP {address}: {detail}");
                return Err(self.invalid(&path, text_list(&shown), &detail));
            }
        }
        set(spec, "clusterIP", list[0].as_str());
        set(spec, "clusterIPs", list);
        Ok(())
    }

    fn take_address(&mut self, address: &str) -> Result<(), String> {
        let range = self.ctx.settings.service_cidr;
        let Some(parsed) = ip::parse(address).filter(|a| range.contains(a)) else {
            return Err("the provided network does not match the current range".to_owned());
        };
        if parsed == range.network() || (parsed.is_ipv4() && parsed == range.broadcast()) {
            return Err(format!(
                "the provided IP ({parsed}) is not in the valid range. The range of valid IPs is {range}"
            ));
        }
        let key = address_key(parsed);
        if self.is_taken(&key) {
            return Err("provided IP is already allocated".to_owned());
        }
        self.take(key);
        Ok(())
    }

    /// Returns a free address, drawn from the upper part of the range; the lower part, which is reserved for
    /// addresses that people choose, is used only when the upper one is full (KEP-3070).
    fn free_address(&self) -> Option<IpAddr> {
        let range = self.ctx.settings.service_cidr;
        let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(32);
        // The network's own address and, for IPv4, the broadcast address are left out.
        let usable = (1_u64 << bits).saturating_sub(if range.network().is_ipv4() { 2 } else { 1 });
        let reserved = (usable / 16).clamp(16.min(usable), 256);
        let at = |offset: u64| nth(range.network(), offset + 1);
        let free = |address: &IpAddr| !self.is_taken(&address_key(*address));
        let probe = |low: u64, high: u64| {
            let count = high.checked_sub(low).filter(|c| *c > 0)?;
            let start = self.ctx.random.u64() % count;
            (0..count).map(|i| at(low + (start + i) % count)).find(free)
        };
        probe(reserved, usable).or_else(|| probe(0, reserved))
    }

    /// Takes node ports for Service types that have them; `kept` are the ports the Service held before.
    fn node_ports(&mut self, service: &mut Value, kept: &BTreeSet<i64>) -> Result<(), Status> {
        let automatic = match type_of(service) {
            "NodePort" => true,
            "LoadBalancer" => service.sub("spec").flag("allocateLoadBalancerNodePorts"),
            _ => return Ok(()),
        };
        let Some(spec) = spec_mut(service) else { return Ok(()) };
        // Ports with the same number and different protocols share a node port.
        let mut shared: Vec<(i64, i64)> = spec
            .items("ports")
            .iter()
            .filter(|p| p.int("nodePort") != 0)
            .map(|p| (p.int("port"), p.int("nodePort")))
            .collect();
        let sharing = kept.is_empty();
        let mut claimed = kept.clone();
        for (i, port) in items_mut(spec, "ports").enumerate() {
            let (number, asked) = (port.int("port"), port.int("nodePort"));
            if asked == 0 && !automatic {
                continue;
            }
            let known = shared.iter().find(|(p, _)| *p == number && sharing).map(|(_, n)| *n);
            let chosen = match (asked, known) {
                (0, Some(known)) => known,
                (0, None) => self
                    .free_port()
                    .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?,
                (asked, _) => asked,
            };
            if claimed.insert(chosen) {
                self.take_port(chosen).map_err(|detail| {
                    let at = Path::new("spec").child("ports").index(i).child("nodePort");
                    self.invalid(&at, chosen, &detail)
                })?;
            }
            shared.push((number, chosen));
            set(port, "nodePort", chosen);
        }
        Ok(())
    }

    fn take_port(&mut self, port: i64) -> Result<(), String> {
        let range = &self.ctx.settings.node_port_range;
        if !u16::try_from(port).is_ok_and(|p| range.contains(&p)) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            ));
        }
        let key = port_key(port);
        if self.is_taken(&key) {
            return Err("provided port is already allocated".to_owned());
        }
        self.take(key);
        Ok(())
    }

    fn free_port(&self) -> Option<i64> {
        let range = &self.ctx.settings.node_port_range;
        let (low, count) = (i64::from(*range.start()), range.len() as u64);
        let start = self.ctx.random.u64().checked_rem(count)?;
        (0..count)
            .filter_map(|i| i64::try_from((start + i) % count).ok())
            .map(|offset| low + offset)
            .find(|port| !self.is_taken(&port_key(*port)))
    }

    fn health_port(&mut self, service: &mut Value) -> Result<(), Status> {
        if !needs_health_port(service) {
            return Ok(());
        }
        let asked = service.sub("spec").int("healthCheckNodePort");
        let port = match asked {
            0 => self.free_port().ok_or_else(|| {
                Status::internal("failed to allocate a HealthCheck NodePort 0: range is full")
            })?,
            asked => asked,
        };
        self.take_port(port).map_err(|detail| {
            Status::internal(format!("failed to allocate requested HealthCheck NodePort {port}: {detail}"))
        })?;
        if let Some(spec) = spec_mut(service) {
            set(spec, "healthCheckNodePort", port);
        }
        Ok(())
    }
}

fn is_stored(store: &Store, key: &str) -> bool {
    store.get(key).is_some()
}

/// Returns the address `offset` above `base`.
fn nth(base: IpAddr, offset: u64) -> IpAddr {
    match base {
        IpAddr::V4(v4) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4).saturating_add(offset)))
        }
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).saturating_add(u128::from(offset)))),
    }
}
