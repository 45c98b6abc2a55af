//! Kubeconfigs: writes them for operators on a master, and reads them for every command
//! that connects to a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use master_node::pki::files::write_private;
use master_node::pki::{KeyFiles, Subject, Usage, Validity};
use proto_env::{SystemDisk, TlsMaterial};
use serde::Deserialize;

/// Renders a kubeconfig with one cluster, one user and one context.
pub fn render(server: &str, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> String {
    let [ca, certificate, key] = [ca_pem, certificate_pem, key_pem].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: ephor\nclusters:\n- name: ephor\n  cluster:\n    \
         server: {server}\n    certificate-authority-data: {ca}\ncontexts:\n- name: ephor\n  context:\n    \
         cluster: ephor\n    user: kubernetes-admin\nusers:\n- name: kubernetes-admin\n  user:\n    \
         client-certificate-data: {certificate}\n    client-key-data: {key}\n"
    )
}

/// Issues an operator's certificate from the keys in a master's data directory.
pub fn admin(data_dir: &Path, server: &str, lifetime: Duration) -> Result<String> {
    let files = KeyFiles::new(data_dir, Arc::new(SystemDisk));
    let keys = files.load()?.with_context(|| {
        format!(
            "{} holds no keys of a cluster: run this on a master, with its --data-dir",
            data_dir.display()
        )
    })?;
    let validity = Validity::new(SystemTime::now(), lifetime);
    let subject = Subject::new("kubernetes-admin", "system:masters");
    let issued = keys.authority.issue(&subject, &[], Usage::Client, validity)?;
    Ok(render(server, keys.authority.certificate_pem(), &issued.chain_pem, &issued.key_pem))
}

/// Writes the kubeconfig of [`admin`] to a file that only its owner can read.
pub fn write_admin(data_dir: &Path, server: &str, lifetime: Duration, path: &Path) -> Result<()> {
    let text = admin(data_dir, server, lifetime)?;
    write_private(&SystemDisk, path, text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// Path of the default kubeconfig: `$KUBECONFIG`, the dev cluster's, a master's, `~/.kube/config`.
pub fn default_path() -> PathBuf {
    let candidates = ["/var/lib/ephor-dev/kubeconfig", "/var/lib/ephor/master/kubeconfig"];
    std::env::var_os("KUBECONFIG")
        .map(PathBuf::from)
        .or_else(|| candidates.iter().map(PathBuf::from).find(|p| p.exists()))
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config")))
        .unwrap_or_else(|| PathBuf::from("kubeconfig"))
}

/// Creates a client from a kubeconfig; `server` overrides its endpoint.
pub async fn client(path: &Path, server: Option<&str>) -> Result<Client> {
    let mut file = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    if let Some(server) = server {
        for cluster in file.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
            cluster.server = Some(server.to_owned());
        }
    }
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Returns the CA certificate of a kubeconfig, PEM.
pub fn ca_of(path: &Path) -> Result<String> {
    Ok(material(path)?.ca_pem)
}

/// Returns the certificates of a kubeconfig, for the peer ports of masters and workers.
pub fn material(path: &Path) -> Result<TlsMaterial> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let file: EmbeddedKubeconfig = serde_norway::from_str(&text)
        .with_context(|| format!("{} does not embed its certificates", path.display()))?;
    let cluster = file.clusters.into_iter().next().context("the kubeconfig has no cluster")?.cluster;
    let user = file.users.into_iter().next().context("the kubeconfig has no user")?.user;
    let decode = |data: String| -> Result<String> { Ok(String::from_utf8(STANDARD.decode(data)?)?) };
    Ok(TlsMaterial {
        ca_pem: decode(cluster.certificate_authority_data)?,
        certificate_pem: decode(user.client_certificate_data)?,
        key_pem: decode(user.client_key_data)?,
    })
}

/// A kubeconfig with embedded certificates, as [`render`] writes it.
#[derive(Deserialize)]
struct EmbeddedKubeconfig {
    clusters: Vec<ClusterEntry>,
    users: Vec<UserEntry>,
}

#[derive(Deserialize)]
struct ClusterEntry {
    cluster: ClusterData,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterData {
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct UserEntry {
    user: UserData,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UserData {
    client_certificate_data: String,
    client_key_data: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_kubeconfig_reads_back() {
        let directory = std::env::temp_dir().join(format!("ephor-kubeconfig-{}", std::process::id()));
        std::fs::write(&directory, render("https://127.0.0.1:6443", "ca", "certificate", "key")).unwrap();
        let read = material(&directory);
        std::fs::remove_file(&directory).unwrap();
        let read = read.unwrap();
        assert_eq!((read.ca_pem.as_str(), read.certificate_pem.as_str()), ("ca", "certificate"));
        assert_eq!(read.key_pem, "key");
    }
}
