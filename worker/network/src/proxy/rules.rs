//! Turns routing into an nftables ruleset. A packet is looked up once, in a verdict map keyed by address,
//! protocol and port; the service's chain then picks an endpoint in one rule. The cost does not grow with the
//! number of services and endpoints. (Only services with session affinity have a chain per endpoint.)
//!
//! | chain | holds |
//! | --- | --- |
//! | `prerouting`, `output` | nat hooks: incoming packets, packets sent by this host |
//! | `postrouting` | nat hook: masquerades marked packets, and endpoints that reach themselves |
//! | `check-forward`, `check-input`, `check-output` | filter hooks: services without endpoints, unknown ports |
//! | `guard-prerouting`, `guard-output` | filter hooks before the nat hooks: clients of load balancers |
//! | `s-HASH`, `l-HASH` | picks one of all endpoints, or one of this node's endpoints |
//! | `x-HASH` | traffic from outside: marks it for masquerading, or keeps its source |
//! | `g-HASH` | drops what comes from outside `loadBalancerSourceRanges` |
//! | `e-HASH-...` | one endpoint of a service with affinity, with the set `a-HASH-...` of its clients |

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use super::{EndpointAddress, PortKey, RoutedPort, Ruleset};
use crate::overlay::VTEP_RANGE;

/// Name of the nftables table.
pub const TABLE: &str = "ephor-proxy";
/// Packet mark, the same bit as kube-proxy's: packets with this mark are masqueraded when they leave.
const MARK: &str = "0x4000";

/// Parameters of the ruleset besides routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleParameters {
    /// Range of all pod addresses.
    pub cluster_cidr: Ipv4Net,
    /// Range of all service addresses.
    pub service_cidr: Ipv4Net,
    /// Service addresses that this node answers itself (cluster DNS).
    pub served_here: BTreeSet<Ipv4Addr>,
}

/// Builds the ruleset for this routing.
pub fn ruleset(parameters: &RuleParameters, routed: &[RoutedPort]) -> Ruleset {
    let mut rules = base(parameters);
    for port in routed {
        service(&mut rules, parameters, port);
    }
    rules
}

fn base(parameters: &RuleParameters) -> Ruleset {
    let mut rules = Ruleset { table: TABLE.into(), ..Ruleset::default() };
    let address_port = "ipv4_addr . inet_proto . inet_service";
    for (name, kind, definition) in [
        ("service-ips", "map", format!("{address_port} : verdict")),
        ("service-node-ports", "map", "inet_proto . inet_service : verdict".into()),
        ("unserved-ips", "map", format!("{address_port} : verdict")),
        ("unserved-node-ports", "map", "inet_proto . inet_service : verdict".into()),
        ("guarded-ips", "map", format!("{address_port} : verdict")),
        ("cluster-ips", "set", "ipv4_addr".into()),
        ("hairpin", "set", "ipv4_addr . ipv4_addr".into()),
    ] {
        rules.sets.insert(name.into(), (kind, format!("{{ type {definition}; }}")));
    }
    let hook =
        |kind: &str, hook: &str, priority: i32| format!("{{ type {kind} hook {hook} priority {priority}; }}");
    let service_cidr = parameters.service_cidr;
    let here = list(parameters.served_here.iter());
    let mut chain = |name: &str, hook: String, lines: &[&str]| {
        rules.chains.insert(name.into(), (hook, lines.iter().map(ToString::to_string).collect()));
    };
    let not_here = if here.is_empty() { String::new() } else { format!("ip daddr != {here} ") };
    let node_ports = |map: &str| {
        format!("{not_here}ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @{map}")
    };
    chain(
        "services",
        String::new(),
        &["ip daddr . meta l4proto . th dport vmap @service-ips", &node_ports("service-node-ports")],
    );
    // Before the nat hooks, while the packet still has the load balancer's address.
    let guarded = ["ct state new ip daddr . meta l4proto . th dport vmap @guarded-ips"];
    chain("guard-prerouting", hook("filter", "prerouting", -110), &guarded);
    chain("guard-output", hook("filter", "output", -110), &guarded);
    chain("prerouting", hook("nat", "prerouting", -100), &["goto services"]);
    chain("output", hook("nat", "output", -100), &["goto services"]);
    chain(
        "postrouting",
        hook("nat", "postrouting", 100),
        &[
            "oifname != \"lo\" ip saddr . ip daddr @hairpin masquerade fully-random",
            &format!("meta mark & {MARK} != 0 meta mark set meta mark xor {MARK} masquerade fully-random"),
        ],
    );
    chain("mark-outside", String::new(), &[&format!("meta mark set meta mark or {MARK}")]);
    // A reset reaches a TCP client at once; the ICMP error is rate limited by the kernel.
    chain("refuse", String::new(), &["meta l4proto tcp reject with tcp reset", "reject"]);
    chain("discard", String::new(), &["drop"]);
    let mut unserved = Vec::new();
    if !here.is_empty() {
        unserved.push(format!("ip daddr {here} return"));
    }
    unserved.push("ip daddr . meta l4proto . th dport vmap @unserved-ips".into());
    unserved.push("ip daddr @cluster-ips goto refuse".into());
    unserved.push(format!("ip daddr {service_cidr} drop comment \"no such service\""));
    let unserved: Vec<&str> = unserved.iter().map(String::as_str).collect();
    chain("unserved", String::new(), &unserved);
    let check = ["ct state new goto unserved"];
    chain(
        "check-forward",
        hook("filter", "forward", -110),
        // Connection tracking has given up on an invalid packet: it would reach its client untranslated, and
        // the client's reset would end a healthy connection.
        &["ct state invalid drop", check[0]],
    );
    // After the `output` nat hook: a translated packet no longer has a service's address as its destination.
    chain("check-output", hook("filter", "output", -90), &check);
    chain(
        "check-input",
        hook("filter", "input", -110),
        &[&format!("ct state new {}", node_ports("unserved-node-ports")), check[0]],
    );
    rules
}

fn service(rules: &mut Ruleset, parameters: &RuleParameters, port: &RoutedPort) {
    let id = identity(&port.key);
    let comment = comment(&port.key);
    let (s, l, x) = (format!("s-{id}"), format!("l-{id}"), format!("x-{id}"));
    let protocol = port.key.protocol.as_str();
    let sources = format!("{{ {}, {VTEP_RANGE} }}", parameters.cluster_cidr);
    let outside = port.node_port.is_some() || !port.external_ips.is_empty();

    let inside = if port.internal_local { (&l, &port.local) } else { (&s, &port.cluster) };
    let external = if port.external_local { &port.local } else { &port.cluster };
    if !port.cluster.is_empty() {
        let marking = format!("ip daddr {} ip saddr != {sources} jump mark-outside", port.cluster_ip);
        pick(rules, &s, &id, port, &port.cluster, Some(marking));
    }
    if !port.local.is_empty() {
        pick(rules, &l, &id, port, &port.local, None);
    }
    if outside && !port.cluster.is_empty() {
        rules.chains.insert(x.clone(), (String::new(), from_outside(port, parameters, &s, &l)));
    }

    element(rules, "cluster-ips", port.cluster_ip.to_string(), String::new());
    let unserved = |local: bool| if local { "discard" } else { "refuse" };
    guard(rules, &id, port);
    let mut address = |ip: Ipv4Addr, chain: Option<&str>, otherwise: &str| {
        let key = format!("{ip} . {protocol} . {}", port.key.port);
        match chain {
            Some(chain) => element(rules, "service-ips", key, format!("{comment} : goto {chain}")),
            None => element(rules, "unserved-ips", key, format!("{comment} : goto {otherwise}")),
        }
    };
    let chain = (!inside.1.is_empty()).then_some(inside.0.as_str());
    address(port.cluster_ip, chain, unserved(port.internal_local));
    // If a local policy applies and there is no local endpoint, clients inside the
    // cluster still reach the service.
    let chain = (!port.cluster.is_empty()).then_some(x.as_str());
    for ip in &port.external_ips {
        address(*ip, chain, unserved(port.external_local));
    }
    if let Some(node_port) = port.node_port {
        let key = format!("{protocol} . {node_port}");
        if let Some(chain) = chain {
            element(rules, "service-node-ports", key.clone(), format!("{comment} : goto {chain}"));
        }
        if external.is_empty() {
            let verdict = unserved(port.external_local);
            element(rules, "unserved-node-ports", key, format!("{comment} : goto {verdict}"));
        }
    }
    for ip in &port.hairpin {
        element(rules, "hairpin", format!("{ip} . {ip}"), String::new());
    }
}

/// Adds rules that let only the sources allowed by the Service reach its load balancer addresses, as
/// kube-proxy does; node ports and other external addresses are not restricted.
fn guard(rules: &mut Ruleset, id: &str, port: &RoutedPort) {
    let Some((addresses, ranges)) = &port.guarded else { return };
    let chain = format!("g-{id}");
    let allowed = list(ranges.iter());
    let lines = if allowed.is_empty() {
        vec!["drop".into()]
    } else {
        vec![format!("ip saddr {allowed} return"), "drop".into()]
    };
    rules.chains.insert(chain.clone(), (String::new(), lines));
    let comment = comment(&port.key);
    for ip in addresses {
        let key = format!("{ip} . {} . {}", port.key.protocol.as_str(), port.key.port);
        element(rules, "guarded-ips", key, format!("{comment} : goto {chain}"));
    }
}

fn from_outside(port: &RoutedPort, parameters: &RuleParameters, s: &str, l: &str) -> Vec<String> {
    if !port.external_local {
        return vec!["jump mark-outside".into(), format!("goto {s}")];
    }
    let mut lines = vec![
        format!("ip saddr {} goto {s}", parameters.cluster_cidr),
        "fib saddr type local jump mark-outside".into(),
        format!("fib saddr type local goto {s}"),
    ];
    if !port.local.is_empty() {
        lines.push(format!("goto {l}"));
    }
    lines
}

/// Adds the chain that picks one of `backends`.
fn pick(
    rules: &mut Ruleset,
    chain: &str,
    id: &str,
    port: &RoutedPort,
    backends: &BTreeSet<EndpointAddress>,
    first: Option<String>,
) {
    let protocol = port.key.protocol.as_str();
    let count = backends.len();
    let numbered = |value: &dyn Fn(&EndpointAddress) -> String| {
        let entries: Vec<_> =
            backends.iter().enumerate().map(|(index, b)| format!("{index} : {}", value(b))).collect();
        (format!("numgen random mod {count}"), entries.join(", "))
    };
    let mut lines: Vec<String> = first.into_iter().collect();
    match (port.affinity_seconds, backends.first()) {
        (None, Some(only)) if count == 1 => {
            lines.push(format!("meta l4proto {protocol} dnat ip to {}:{}", only.ip, only.port));
        }
        (None, _) => {
            let (random, map) = numbered(&|b| format!("{} . {}", b.ip, b.port));
            lines.push(format!("meta l4proto {protocol} dnat ip to {random} map {{ {map} }}"));
        }
        (Some(seconds), _) => {
            for backend in backends {
                let name = sticky(rules, id, protocol, backend, seconds);
                lines.push(format!("ip saddr @a-{name} goto e-{name}"));
            }
            let (random, map) = numbered(&|b| format!("goto e-{}", sticky_name(id, b)));
            lines.push(format!("{random} vmap {{ {map} }}"));
        }
    }
    rules.chains.insert(chain.into(), (String::new(), lines));
}

fn sticky_name(id: &str, backend: &EndpointAddress) -> String {
    format!("{id}-{:08x}-{}", u32::from(backend.ip), backend.port)
}

/// Adds set and chain for one endpoint of a service with affinity; returns the chain's name. The timeout is
/// part of the rule that renews an entry, so that changing it does not lose the set.
fn sticky(rules: &mut Ruleset, id: &str, protocol: &str, backend: &EndpointAddress, seconds: u32) -> String {
    let name = sticky_name(id, backend);
    let set = "{ type ipv4_addr; flags dynamic, timeout; size 65535; }";
    rules.sets.insert(format!("a-{name}"), ("set", set.into()));
    let lines = vec![
        format!("update @a-{name} {{ ip saddr timeout {seconds}s }}"),
        format!("meta l4proto {protocol} dnat ip to {}:{}", backend.ip, backend.port),
    ];
    rules.chains.insert(format!("e-{name}"), (String::new(), lines));
    name
}

fn element(rules: &mut Ruleset, set: &str, key: String, value: String) {
    // If two services claim the same address and port, the first one keeps it.
    rules.elements.entry(set.into()).or_default().entry(key).or_insert(value);
}

/// Returns a short, stable identifier of a service port, made from a hash, so that no name yields
/// another port's identifier.
fn identity(key: &PortKey) -> String {
    let text =
        format!("{}/{}/{}/{}", key.service.namespace, key.service.name, key.protocol.as_str(), key.port);
    let digest = Sha256::digest(text);
    digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a comment that names the service port in `nft list`, at most the 128 bytes that nftables takes.
fn comment(key: &PortKey) -> String {
    let name: String = format!("{}/{}", key.service.namespace, key.service.name).chars().take(120).collect();
    format!(" comment \"{name}\"")
}

fn list<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { String::new() } else { format!("{{ {} }}", items.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_state::{ObjectKey, Protocol};

    fn parameters() -> RuleParameters {
        RuleParameters {
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            served_here: BTreeSet::from([Ipv4Addr::new(10, 96, 0, 10)]),
        }
    }

    fn port(backends: &[u8]) -> RoutedPort {
        let cluster = backends
            .iter()
            .map(|last| EndpointAddress { ip: Ipv4Addr::new(10, 42, 0, *last), port: 8080 })
            .collect();
        RoutedPort {
            key: PortKey { service: ObjectKey::new("default", "web"), port: 80, protocol: Protocol::Tcp },
            cluster_ip: Ipv4Addr::new(10, 96, 7, 7),
            node_port: None,
            external_ips: BTreeSet::new(),
            guarded: None,
            cluster,
            local: BTreeSet::new(),
            internal_local: false,
            external_local: false,
            affinity_seconds: None,
            hairpin: BTreeSet::new(),
        }
    }

    fn chain(rules: &Ruleset, prefix: &str) -> Vec<String> {
        rules.chains.iter().find(|(name, _)| name.starts_with(prefix)).map(|(_, c)| c.1.clone()).unwrap()
    }

    #[test]
    fn the_number_of_rules_a_packet_meets_does_not_grow_with_endpoints() {
        let few = chain(&ruleset(&parameters(), &[port(&[2, 3])]), "s-").len();
        let many = chain(&ruleset(&parameters(), &[port(&(2..200).collect::<Vec<_>>())]), "s-").len();
        assert_eq!(few, many);
    }

    #[test]
    fn a_service_without_endpoints_is_refused_and_not_routed() {
        let rules = ruleset(&parameters(), &[port(&[])]);
        assert!(!rules.elements.contains_key("service-ips"));
        assert!(rules.elements["unserved-ips"]["10.96.7.7 . tcp . 80"].ends_with("goto refuse"));
    }

    #[test]
    fn a_local_policy_without_local_endpoints_drops_what_comes_from_outside() {
        let mut local = port(&[2]);
        local.node_port = Some(30080);
        local.external_local = true;
        let rules = ruleset(&parameters(), &[local]);
        assert!(rules.elements["unserved-node-ports"]["tcp . 30080"].ends_with("goto discard"));
        let external = chain(&rules, "x-");
        assert!(!external.iter().any(|line| line.contains("goto l-")), "{external:?}");
    }

    #[test]
    fn a_load_balancer_with_source_ranges_drops_other_sources_before_it_is_routed() {
        let mut guarded = port(&[2]);
        let address = Ipv4Addr::new(192, 0, 2, 1);
        guarded.external_ips = BTreeSet::from([address, Ipv4Addr::new(192, 0, 2, 2)]);
        let ranges = BTreeSet::from(["198.51.100.0/24".parse().unwrap()]);
        guarded.guarded = Some((BTreeSet::from([address]), ranges));
        let rules = ruleset(&parameters(), &[guarded.clone()]);
        assert_eq!(rules.elements["guarded-ips"].keys().collect::<Vec<_>>(), ["192.0.2.1 . tcp . 80"]);
        assert_eq!(chain(&rules, "g-"), ["ip saddr { 198.51.100.0/24 } return", "drop"]);
        guarded.guarded = Some((BTreeSet::from([address]), BTreeSet::new()));
        assert_eq!(chain(&ruleset(&parameters(), &[guarded]), "g-"), ["drop"], "no range of IPv4");
    }

    #[test]
    fn names_are_safe_whatever_the_service_is_called() {
        let mut odd = port(&[2]);
        odd.key.service = ObjectKey::new(&"n".repeat(63), &"x".repeat(63));
        let rules = ruleset(&parameters(), &[odd]);
        assert!(rules.chains.keys().all(|name| name.len() < 64));
        assert!(rules.elements["service-ips"].values().all(|value| value.len() < 190));
    }
}
