//! Validation of a pod's host name, DNS settings and host aliases, and of its ports on the host network.
//! Called by `spec.rs`.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, Report, dns_label, dns_subdomain, legacy_ip};
use super::super::json_fields::JsonFields;
use super::super::string_rules;

/// Validates `spec.dnsPolicy`.
pub fn dns_policy(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    check::one_of(spec.text("dnsPolicy"), POLICIES, path, errs);
}

/// Validates `spec.dnsConfig`.
pub fn dns_config(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const MAX_SERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_TEXT: usize = 2048;
    let servers_path = path.child("nameservers");
    let config = spec.at("dnsConfig");
    let servers = config.map(|c| c.texts("nameservers")).unwrap_or_default();
    if spec.text("dnsPolicy") == "None" && servers.is_empty() {
        match config {
            None => errs.required(path, "must provide `dnsConfig` when `dnsPolicy` is None"),
            Some(_) => {
                let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                errs.required(&servers_path, detail);
            }
        }
        return;
    }
    let Some(config) = config else { return };
    if servers.len() > MAX_SERVERS {
        let detail = format!("must not have more than {MAX_SERVERS} nameservers");
        errs.invalid(&servers_path, check::text_list(&servers), &detail);
    }
    for (i, server) in servers.iter().enumerate() {
        legacy_ip(server, &servers_path.index(i), &[], errs);
    }
    let searches = config.texts("searches");
    let searches_path = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errs.invalid(&searches_path, check::text_list(&searches), &detail);
    }
    if searches.join(" ").len() > MAX_SEARCH_TEXT {
        let detail = format!(
            "must not have more than {MAX_SEARCH_TEXT} characters (including spaces) in the search list"
        );
        errs.invalid(&searches_path, check::text_list(&searches), &detail);
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        errs.each(&searches_path.index(i), search, string_rules::dns_subdomain_underscore(search));
    }
    for (i, option) in config.items("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errs.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

/// Checks that on the host network each container port is also the host port. A template may leave the host
/// port out, since defaults set it only on pods.
pub fn host_network_ports(spec: &Value, is_pod: bool, path: &Path, errs: &mut ErrorList) {
    if !spec.flag("hostNetwork") {
        return;
    }
    for (i, container) in spec.items("containers").iter().enumerate() {
        for (j, port) in container.items("ports").iter().enumerate() {
            let (host, own) = (port.int("hostPort"), port.int("containerPort"));
            if (is_pod || host != 0) && host != own {
                let at = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errs.invalid(&at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// Validates `spec.hostnameOverride` (KEP-4762).
pub fn hostname_override(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let Some(name) = spec.opt_text("hostnameOverride") else { return };
    let at = path.child("hostnameOverride");
    if spec.flag("setHostnameAsFQDN") {
        errs.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.flag("hostNetwork") {
        errs.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errs.too_long(&at, 64);
    }
    dns_subdomain(name, &at, errs);
}

/// Validates `spec.hostname` and `spec.subdomain`.
pub fn host_names(spec: &Value, path: &Path, errs: &mut ErrorList) {
    for key in ["hostname", "subdomain"] {
        if !spec.text(key).is_empty() {
            dns_label(spec.text(key), &path.child(key), errs);
        }
    }
}

/// Validates `spec.hostAliases`.
pub fn host_aliases(spec: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, alias) in spec.items("hostAliases").iter().enumerate() {
        let at = path.index(i);
        legacy_ip(alias.text("ip"), &at.child("ip"), &[], errs);
        for (j, name) in alias.texts("hostnames").iter().enumerate() {
            errs.each(&at.child("hostnames").index(j), name, names::dns1123_subdomain(name));
        }
    }
}
