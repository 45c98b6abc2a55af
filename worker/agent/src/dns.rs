//! Builds a pod's resolver configuration from its dnsPolicy and dnsConfig.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::config::AgentConfig;
use crate::pod;

/// Builds the resolver configuration of the pod's sandbox.
pub fn config(agent: &AgentConfig, pod: &Pod) -> DnsConfig {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network.unwrap_or(false);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let host = parse(&std::fs::read_to_string(&agent.resolv_conf).unwrap_or_default());
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !agent.cluster_dns.is_empty() {
        cluster_first(agent, pod, &host)
    } else {
        host
    };
    if let Some(own) = &spec.dns_config {
        append(&mut dns.servers, own.nameservers.as_deref().unwrap_or_default());
        append(&mut dns.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|existing| existing.split(':').next() != Some(name));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    dns
}

fn cluster_first(agent: &AgentConfig, pod: &Pod, host: &DnsConfig) -> DnsConfig {
    let domain = &agent.cluster_domain;
    let mut searches =
        vec![format!("{}.svc.{domain}", pod::namespace(pod)), format!("svc.{domain}"), domain.clone()];
    append(&mut searches, &host.searches);
    DnsConfig {
        servers: agent.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn append(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// Parses resolv.conf(5): nameserver, search (the last line applies) and options.
fn parse(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let rest = words.map(str::to_owned);
        match keyword {
            Some("nameserver") => dns.servers.extend(rest.take(1)),
            Some("search") => dns.searches = rest.filter(|s| s != ".").collect(),
            Some("options") => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_file_is_read() {
        let dns = parse("# c\nnameserver 1.1.1.1\nsearch a b\noptions ndots:2 edns0\nnameserver 8.8.8.8\n");
        assert_eq!(dns.servers, ["1.1.1.1", "8.8.8.8"]);
        assert_eq!(dns.searches, ["a", "b"]);
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
    }
}
