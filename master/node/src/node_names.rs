//! Checks the names of masters and nodes: a name must be a DNS-1123 subdomain that
//! belongs to nothing else. It ends up in certificates, so a node named like the API
//! server's Service could impersonate it. Called by `join.rs`.

use std::net::IpAddr;

use proto_wire::settings::ClusterSettings;

use crate::certificates::{API_NAMES, host_of};

/// Checks the name of a master. A master holds the CA, so no name gives it more
/// rights than it has.
///
/// # Errors
/// One line that says what is wrong with the name.
pub fn check_master(name: &str) -> Result<(), String> {
    match proto_api::names::dns1123_subdomain(name).into_iter().next() {
        Some(why) => Err(format!("node name {name:?}: {why}")),
        None => Ok(()),
    }
}

/// Checks the name of a node.
///
/// # Errors
/// One line that says what is wrong with the name.
pub fn check(name: &str, settings: &ClusterSettings) -> Result<(), String> {
    check_master(name)?;
    if name.parse::<IpAddr>().is_ok() || name.rsplit('.').next().is_some_and(is_number) {
        return Err(format!("node name {name:?}: it looks like an address (give --name)"));
    }
    let domain = settings.cluster_domain.trim_matches('.');
    let below = |suffix: &str| name == suffix || name.ends_with(&format!(".{suffix}"));
    let endpoint = settings.control_plane_endpoint.as_deref().map(host_of);
    let reserved = API_NAMES.contains(&name)
        || name.starts_with("kubernetes.")
        || ["localhost", "svc", domain].into_iter().any(below)
        || endpoint.as_deref() == Some(name);
    if reserved {
        return Err(format!("node name {name:?}: it is reserved for the cluster itself (give --name)"));
    }
    Ok(())
}

/// Whether a label is a number: no top-level domain is one (RFC 3696), so such a name is read as an address.
fn is_number(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_cluster_and_addresses_are_nobody_s() {
        let settings = ClusterSettings {
            control_plane_endpoint: Some("api.example.org:6443".to_owned()),
            ..ClusterSettings::default()
        };
        for name in [
            "10.96.0.1",
            "10.0.1",
            "127.1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "web.default.svc",
            "web.default.svc.cluster.local",
            "svc",
            "cluster.local",
            "localhost",
            "a.localhost",
            "master",
            "api.example.org",
            "W1",
            "a b",
            "",
        ] {
            assert!(check(name, &settings).is_err(), "{name}");
        }
        for name in
            ["w1", "node-1", "node1.example.org", "m1", "10-0-0-1", "kubernetes-1", "a.svc.example.org"]
        {
            assert_eq!(check(name, &settings), Ok(()), "{name}");
        }
    }
}
