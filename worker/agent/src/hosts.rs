//! The hosts file mounted into containers: kubelet's content, with the pod's name and hostAliases.

use std::fmt::Write as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::{Error, pod};

/// Writes the hosts file of a pod, once its sandbox has IP addresses.
pub fn write(path: &Path, pod: &Pod, ips: &[String], hostname: &str, domain: &str) -> Result<(), Error> {
    let spec = pod::spec(pod);
    let mut content = if spec.host_network.unwrap_or(false) {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        managed(ips, hostname, domain)
    };
    append_aliases(&mut content, spec.host_aliases.as_deref().unwrap_or_default());
    if std::fs::read_to_string(path).is_ok_and(|existing| existing == content) {
        return Ok(());
    }
    std::fs::write(path, content).map_err(|e| Error::io("write", path, e))
}

fn managed(ips: &[String], hostname: &str, domain: &str) -> String {
    let mut content = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let line = if domain.is_empty() {
            format!("{ip}\t{hostname}\n")
        } else {
            format!("{ip}\t{hostname}.{domain}\t{hostname}\n")
        };
        content.push_str(&line);
    }
    content
}

fn append_aliases(content: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    content.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        // Writing to a String cannot fail.
        let _ = writeln!(content, "{}\t{names}", alias.ip);
    }
}

/// Returns the pod's hostname (`spec.hostnameOverride`, `spec.hostname` or its name) and its domain below the
/// cluster domain, empty if the pod has no subdomain.
pub fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod::spec(pod);
    let hostname = spec.hostname_override.clone().or_else(|| spec.hostname.clone()).filter(|h| !h.is_empty());
    let mut hostname = hostname.unwrap_or_else(|| pod::name(pod).to_owned());
    hostname.truncate(63);
    let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty() && spec.hostname_override.is_none());
    let domain =
        subdomain.map(|s| format!("{s}.{}.svc.{cluster_domain}", pod::namespace(pod))).unwrap_or_default();
    (hostname, domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_subdomain_and_aliases_has_both_in_its_hosts_file() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "n"},
            "spec": {"containers": [], "subdomain": "web",
                     "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["foo", "bar"]}]}}))
        .unwrap();
        let (hostname, domain) = names(&pod, "cluster.local");
        assert_eq!(domain, "web.n.svc.cluster.local");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc-hosts");
        write(&path, &pod, &["10.0.0.1".to_owned()], &hostname, &domain).unwrap();
        let content = std::fs::read_to_string(path).unwrap();
        assert!(content.starts_with("# Kubernetes-managed hosts file.\n"));
        assert!(content.contains("10.0.0.1\tweb-0.web.n.svc.cluster.local\tweb-0\n"));
        assert!(content.ends_with("1.2.3.4\tfoo\tbar\n"));
    }
}
