//! Answers questions about names in the cluster's domain, as the DNS specification of Kubernetes (version
//! 1.1.0) defines. Pure: takes content and question, returns records.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    str::FromStr,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, CNAME, PTR, SOA, SRV, TXT},
};
use ipnet::Ipv4Net;

use crate::cluster_state::{ClusterContent, EndpointView, ObjectKey, Protocol, ServiceView};

/// TTL of answers in seconds; short, so that changes become visible soon.
const TTL: u32 = 5;

/// Result of a question to the zone.
#[derive(Clone, Debug, PartialEq)]
pub enum ZoneResult {
    /// The name is in the zone: an answer, possibly empty.
    Answer(Answer),
    /// The name is in the zone, but the state has not been listed yet.
    NotReady,
    /// The name is outside of the zone: ask another resolver.
    Elsewhere,
}

/// An authoritative answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Whether the name exists; for an answer without records this distinguishes NODATA from NXDOMAIN.
    pub exists: bool,
    /// Records of the answer section.
    pub records: Vec<Record>,
    /// Addresses of the names in the answer section.
    pub additional: Vec<Record>,
    /// Name outside the cluster that the last answer points to, whose addresses belong in the
    /// answer; `None` if there is none.
    pub alias: Option<Name>,
}

/// The names this server is responsible for.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: Vec<String>,
    apex: Name,
    reverse: Vec<Ipv4Net>,
}

/// A name below the cluster's domain.
struct Question<'a> {
    content: &'a ClusterContent,
    name: &'a Name,
    kind: RecordType,
}

impl Zone {
    /// Makes the zone of a domain such as `cluster.local`; reverse lookups in the ranges
    /// `reverse` are answered too.
    pub fn new(domain: &str, reverse: Vec<Ipv4Net>) -> Result<Self, super::Error> {
        let lower = domain.trim_matches('.').to_ascii_lowercase();
        let refused = |reason: String| super::Error::Domain { domain: domain.into(), reason };
        let apex = Name::from_str(&format!("{lower}.")).map_err(|error| refused(error.to_string()))?;
        let domain: Vec<String> = lower.split('.').map(str::to_string).collect();
        if domain.iter().any(String::is_empty) {
            return Err(refused("empty label".into()));
        }
        Ok(Self { domain, apex, reverse })
    }

    /// Returns the SOA record that accompanies answers without records.
    pub fn soa(&self) -> Record {
        let prefixed = |label: &str| self.apex.prepend_label(label).unwrap_or_else(|_| self.apex.clone());
        let soa = SOA::new(prefixed("ns.dns"), prefixed("hostmaster"), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.apex.clone(), TTL, RData::SOA(soa))
    }

    /// Answers one question of class IN.
    pub fn answer(&self, content: &ClusterContent, name: &Name, kind: RecordType) -> ZoneResult {
        let labels: Vec<String> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let question = Question { content, name, kind };
        let answer = if let Some(inner) = labels.strip_suffix(self.domain.as_slice()) {
            self.inside(&question, inner)
        } else if let Some(address) = reverse_address(&labels)
            && self.reverse.iter().any(|net| net.contains(&address))
        {
            self.pointer(&question, address)
        } else {
            return ZoneResult::Elsewhere;
        };
        // Until everything has been listed, a name without records must not be reported as absent.
        if !content.routable() && answer.records.is_empty() {
            return ZoneResult::NotReady;
        }
        ZoneResult::Answer(answer)
    }

    fn inside(&self, question: &Question<'_>, labels: &[String]) -> Answer {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] if question.kind == RecordType::SOA => {
                Answer { exists: true, records: vec![self.soa()], ..Answer::default() }
            }
            [] if question.kind == RecordType::NS => {
                let target = self.soa().data;
                let RData::SOA(soa) = target else { return nodata() };
                question.records([RData::NS(hickory_proto::rr::rdata::NS(soa.mname))])
            }
            [] | ["svc"] | ["pod"] | ["dns"] => nodata(),
            ["dns-version"] if question.kind == RecordType::TXT => {
                question.records([RData::TXT(TXT::new(vec!["1.1.0".into()]))])
            }
            ["dns-version"] => nodata(),
            [namespace, "svc"] => exists(has_namespace(question.content, namespace)),
            [_, "pod"] => nodata(),
            [address, _, "pod"] => match parse_dashed(address) {
                Some(ip) => question.addresses([ip]),
                None => Answer::default(),
            },
            [rest @ .., service, namespace, "svc"] => {
                let key = ObjectKey::new(namespace, service);
                match question.content.services.get(&key) {
                    Some(view) => self.service(question, rest, &key, view),
                    None => Answer::default(),
                }
            }
            _ => Answer::default(),
        }
    }

    fn service(&self, question: &Question<'_>, rest: &[&str], key: &ObjectKey, view: &ServiceView) -> Answer {
        match rest {
            [] => match (&view.external_name, view.cluster_ip) {
                (Some(target), _) => self.external_name(question, target),
                (None, Some(ip)) => question.addresses([ip]),
                (None, None) => {
                    question.addresses(published(question.content, key).into_iter().map(|end| end.ip))
                }
            },
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                self.ports(question, &port[1..], &protocol[1..], key, view)
            }
            // `_tcp.web...` has no records, but names below it exist.
            [protocol] if *protocol == "_tcp" || *protocol == "_udp" => nodata(),
            [host] if view.headless => {
                let ends = published(question.content, key);
                let ips: Vec<_> =
                    ends.iter().filter(|end| host_label(end) == *host).map(|end| end.ip).collect();
                if ips.is_empty() { Answer::default() } else { question.addresses(ips) }
            }
            _ => Answer::default(),
        }
    }

    fn external_name(&self, question: &Question<'_>, target: &str) -> Answer {
        let Ok(target) = Name::from_str(&format!("{}.", target.trim_end_matches('.'))) else {
            return nodata();
        };
        let mut answer = question.records([RData::CNAME(CNAME(target.clone()))]);
        if question.kind != RecordType::CNAME {
            answer.alias = Some(target);
        }
        answer
    }

    /// Returns the SRV records of `_PORT._PROTOCOL.SERVICE...`.
    fn ports(
        &self,
        question: &Question<'_>,
        port: &str,
        protocol: &str,
        key: &ObjectKey,
        view: &ServiceView,
    ) -> Answer {
        let protocol = Protocol::parse(Some(&protocol.to_ascii_uppercase()));
        let Some(protocol) = protocol else { return Answer::default() };
        let base = [key.name.as_ref(), key.namespace.as_ref(), "svc"];
        let mut targets = Vec::new();
        if let Some(ip) = view.cluster_ip {
            let ports = view.ports.iter().filter(|p| p.name == port && p.protocol == protocol);
            targets.extend(ports.filter_map(|p| Some((self.below(&base)?, ip, p.port))));
        } else {
            for slice in question.content.slices.get(key).into_iter().flat_map(BTreeMap::values) {
                let numbers = slice.ports.iter().filter(|(name, p, _)| name == port && *p == protocol);
                for (_, _, number) in numbers {
                    for end in slice.endpoints.iter().filter(|end| end.ready) {
                        let label = host_label(end);
                        let name = self.below(&[&[label.as_str()], base.as_slice()].concat());
                        targets.extend(name.map(|name| (name, end.ip, *number)));
                    }
                }
            }
        }
        if targets.is_empty() {
            return Answer::default();
        }
        if !matches!(question.kind, RecordType::SRV | RecordType::ANY) {
            return nodata();
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let mut answer = question.records(
            targets.iter().map(|(name, _, port)| RData::SRV(SRV::new(0, weight, *port, name.clone()))),
        );
        let unique: BTreeSet<_> = targets.into_iter().map(|(name, ip, _)| (name, ip)).collect();
        answer.additional =
            unique.into_iter().map(|(name, ip)| Record::from_rdata(name, TTL, RData::A(A(ip)))).collect();
        answer
    }

    /// Returns the PTR records of services and of the endpoints of headless services.
    fn pointer(&self, question: &Question<'_>, address: Ipv4Addr) -> Answer {
        let content = question.content;
        let mut names = Vec::new();
        if let Some(key) = content.by_cluster_ip.get(&address) {
            names.extend(self.below(&[&key.name, &key.namespace, "svc"]));
        } else {
            let headless = content.services.iter().filter(|(_, view)| view.headless);
            for (key, _) in headless {
                let ends = published(content, key);
                let here = ends.iter().filter(|end| end.ip == address);
                names.extend(
                    here.filter_map(|end| self.below(&[&host_label(end), &key.name, &key.namespace, "svc"])),
                );
            }
        }
        if names.is_empty() {
            return Answer::default();
        }
        if !matches!(question.kind, RecordType::PTR | RecordType::ANY) {
            return nodata();
        }
        question.records(names.into_iter().map(|name| RData::PTR(PTR(name))))
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        let own = labels.iter().copied().chain(self.domain.iter().map(String::as_str));
        Name::from_labels(own.map(str::as_bytes)).ok()
    }
}

impl Question<'_> {
    fn records(&self, data: impl IntoIterator<Item = RData>) -> Answer {
        let record = |data| Record::from_rdata(self.name.clone(), TTL, data);
        Answer { exists: true, records: data.into_iter().map(record).collect(), ..Answer::default() }
    }

    /// Returns A records if they were asked for, else NODATA (there is no IPv6).
    fn addresses(&self, ips: impl IntoIterator<Item = Ipv4Addr>) -> Answer {
        if !matches!(self.kind, RecordType::A | RecordType::ANY) {
            return nodata();
        }
        let unique: BTreeSet<_> = ips.into_iter().collect();
        self.records(unique.into_iter().map(|ip| RData::A(A(ip))))
    }
}

fn nodata() -> Answer {
    exists(true)
}

fn exists(exists: bool) -> Answer {
    Answer { exists, ..Answer::default() }
}

fn has_namespace(content: &ClusterContent, namespace: &str) -> bool {
    content.services.keys().any(|key| key.namespace.as_ref() == namespace)
}

/// Returns the endpoints of a headless service that are published: the ready ones. (For a Service that
/// publishes addresses that are not ready, the controller marks all of them as ready.)
fn published(content: &ClusterContent, key: &ObjectKey) -> Vec<EndpointView> {
    let slices = content.slices.get(key).into_iter().flat_map(BTreeMap::values);
    slices.flat_map(|slice| slice.endpoints.iter().filter(|end| end.ready).cloned()).collect()
}

fn host_label(end: &EndpointView) -> String {
    end.hostname.clone().unwrap_or_else(|| end.ip.to_string().replace('.', "-")).to_ascii_lowercase()
}

fn parse_dashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok().filter(|ip: &Ipv4Addr| ip.to_string().replace('.', "-") == label)
}

/// Returns the address that the labels of `4.3.2.1.in-addr.arpa` encode; `None` if they are not a full
/// address.
fn reverse_address(labels: &[String]) -> Option<Ipv4Addr> {
    match labels {
        [d, c, b, a, zone, root] if zone == "in-addr" && root == "arpa" => {
            format!("{a}.{b}.{c}.{d}").parse().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
