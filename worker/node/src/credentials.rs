//! Credentials of this worker: its certificates with their keys, the cluster's CA and settings. Obtained once
//! by joining with a token, stored in `DATA/pki`, and renewed by `renewal.rs` over the peer port.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{CertificateInfo, MASTERS_ORGANIZATION, Purpose, TlsMaterial, TlsNetwork};
use proto_wire::cluster::join_client::JoinClient;
use proto_wire::cluster::{JoinWorkerRequest, RenewCertificateRequest};
use proto_wire::settings::{self, ClusterSettings};
use proto_wire::token::{self, JoinToken};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use worker_agent::CertificateEnds;

use crate::config::WorkerConfig;

/// Deadline of a join request to one master.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of connecting to one master.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Certificates and cluster data of a worker that has joined.
#[derive(Debug, Clone)]
pub struct NodeCredentials {
    /// Client certificate, for the API and the peer port.
    pub client: TlsMaterial,
    /// Server certificate, for the node's HTTPS server.
    pub serving: TlsMaterial,
    /// Settings shared by all nodes of the cluster.
    pub settings: ClusterSettings,
    /// Addresses of the masters known last.
    pub masters: Vec<Master>,
    /// Id of the cluster.
    pub cluster_id: String,
}

/// Addresses of one master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// `HOST:PORT` of the master's peer port.
    pub peer: String,
    /// `HOST:PORT` of the master's API; empty until the master has told it.
    pub api: String,
}

/// Reasons why a worker cannot join or use its credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificates on disk, and no `--join` and `--token` to obtain them.
    #[error(
        "{0} holds no certificates: give --join ADDRESS --token TOKEN (create one with `ephor token create --role worker`)"
    )]
    NotJoined(PathBuf),
    /// The join token does not parse.
    #[error("the token is malformed: {0}")]
    Token(#[from] token::Error),
    /// Every master refused the join or failed to answer.
    #[error("joining failed: {0}")]
    Refused(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file on disk does not parse.
    #[error("{0} is damaged: remove the data directory and join again")]
    Damaged(PathBuf),
    /// The cluster settings received are invalid.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// A key cannot be generated.
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The certificates cannot be used for TLS.
    #[error("certificates: {0}")]
    Tls(#[from] proto_env::TlsError),
    /// The gRPC channel cannot be created.
    #[error("channel: {0}")]
    Channel(#[from] tonic::transport::Error),
    /// The master refused to renew the certificates.
    #[error("renewing the certificates: {}", .0.message())]
    Renew(tonic::Status),
}

/// On-disk format of `identity.json`, stored beside the PEM files.
#[derive(Serialize, Deserialize)]
struct Record {
    cluster_id: String,
    settings: String,
    masters: Vec<Master>,
}

const CA: &str = "ca.crt";
/// File with certificate and key together, so that the two always match.
const CLIENT: &str = "client.pem";
const SERVING: &str = "serving.pem";

impl NodeCredentials {
    /// Loads the credentials from disk, or joins and stores them.
    ///
    /// # Errors
    /// Fails if nothing is on disk and no join is configured, or if any step fails.
    pub async fn obtain(config: &WorkerConfig) -> Result<Self, Error> {
        if let Some(mut credentials) = Self::load(&config.data_dir)? {
            credentials.try_also(&config.join);
            return Ok(credentials);
        }
        let Some(token) = config.token.as_deref().filter(|_| !config.join.is_empty()) else {
            return Err(Error::NotJoined(config.data_dir.clone()));
        };
        let credentials = join(config, &token.parse()?).await?;
        credentials.store_certificates(&config.data_dir)?;
        // The record is written last: its presence tells `load` that the certificates are complete.
        credentials.store_record(&config.data_dir)?;
        Ok(credentials)
    }

    /// Adds `peers` to the masters to try: after a restore all masters may have new addresses. The first one
    /// that answers tells the API address.
    fn try_also(&mut self, peers: &[String]) {
        for peer in peers {
            if !self.masters.iter().any(|known| known.peer == *peer) {
                self.masters.push(Master { peer: peer.clone(), api: String::new() });
            }
        }
    }

    fn load(data_dir: &Path) -> Result<Option<Self>, Error> {
        let directory = data_dir.join("pki");
        let path = directory.join("identity.json");
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|source| Error::File { path: path.clone(), source })?,
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|_| Error::Damaged(path))?;
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|source| Error::File { path, source })
        };
        let ca = read(CA)?;
        let material = |name: &str| {
            let (certificate_pem, key_pem) =
                split(&read(name)?).ok_or_else(|| Error::Damaged(directory.join(name)))?;
            Ok::<_, Error>(TlsMaterial { ca_pem: ca.clone(), certificate_pem, key_pem })
        };
        Ok(Some(Self {
            client: material(CLIENT)?,
            serving: material(SERVING)?,
            settings: ClusterSettings::from_json(&record.settings)?,
            masters: record.masters,
            cluster_id: record.cluster_id,
        }))
    }

    /// Writes the certificates with their keys.
    ///
    /// # Errors
    /// Fails if a file cannot be written; files written before it stay new, which does no harm.
    pub fn store_certificates(&self, data_dir: &Path) -> Result<(), Error> {
        let directory = data_dir.join("pki");
        write_private(&directory.join(CA), self.client.ca_pem.as_bytes())?;
        for (name, material) in [(SERVING, &self.serving), (CLIENT, &self.client)] {
            let both = format!("{}{}", material.certificate_pem, material.key_pem);
            write_private(&directory.join(name), both.as_bytes())?;
        }
        Ok(())
    }

    /// Writes `identity.json`: cluster id, settings and masters.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn store_record(&self, data_dir: &Path) -> Result<(), Error> {
        let record = Record {
            cluster_id: self.cluster_id.clone(),
            settings: self.settings.to_json(),
            masters: self.masters.clone(),
        };
        let path = data_dir.join("pki/identity.json");
        let json = serde_json::to_vec_pretty(&record).map_err(|_| Error::Damaged(path.clone()))?;
        write_private(&path, &json)
    }

    /// Parses the client certificate; the serving certificate is issued with it and expires at the same time.
    ///
    /// # Errors
    /// Fails if the certificate does not parse.
    pub fn certificate(&self) -> Result<CertificateInfo, Error> {
        Ok(CertificateInfo::from_pem(&self.client.certificate_pem)?)
    }

    /// Returns when the certificates of this node end.
    pub fn ends(&self) -> CertificateEnds {
        let pems = [("client", &self.client.certificate_pem), ("serving", &self.serving.certificate_pem)];
        let read = pems.into_iter().filter_map(|(name, pem)| {
            // `load` and `renew` have read them before.
            CertificateInfo::from_pem(pem).ok().map(|info| (name, info.not_after))
        });
        read.collect()
    }

    /// Requests new certificates for new keys from a master.
    ///
    /// # Errors
    /// Fails if the master refuses or does not answer.
    pub async fn renew(&self, name: &str, channel: Channel) -> Result<Self, Error> {
        let (client, serving) = (Request::make(name)?, Request::make(name)?);
        let mut request = tonic::Request::new(RenewCertificateRequest {
            csr_pem: client.csr_pem,
            serving_csr_pem: serving.csr_pem,
        });
        request.set_timeout(JOIN_TIMEOUT);
        let answer =
            JoinClient::new(channel).renew_certificate(request).await.map_err(Error::Renew)?.into_inner();
        let mut renewed = self.clone();
        renewed.client.certificate_pem = answer.certificate_pem;
        renewed.client.key_pem = client.key_pem;
        renewed.serving.certificate_pem = answer.serving_certificate_pem;
        renewed.serving.key_pem = serving.key_pem;
        Ok(renewed)
    }
}

/// Splits a PEM file into its certificates and its key; `None` if it has no key.
fn split(text: &str) -> Option<(String, String)> {
    let at = text.find("-----BEGIN PRIVATE KEY-----")?;
    Some((text[..at].to_owned(), text[at..].to_owned()))
}

/// A new key and its certificate signing request.
struct Request {
    key_pem: String,
    csr_pem: String,
}

impl Request {
    fn make(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{name}"));
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem })
    }
}

async fn join(config: &WorkerConfig, token: &JoinToken) -> Result<NodeCredentials, Error> {
    let (client, serving) = (Request::make(&config.name)?, Request::make(&config.name)?);
    let network = Arc::new(TlsNetwork::joining());
    let mut refusals = Vec::new();
    for address in &config.join {
        let options = ChannelOptions {
            purpose: Purpose::Join { ca_sha256: token.ca_hash },
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: CONNECT_TIMEOUT,
        };
        let mut request = tonic::Request::new(JoinWorkerRequest {
            token: token.to_string(),
            name: config.name.clone(),
            csr_pem: client.csr_pem.clone(),
            addresses: vec![config.address.to_string()],
            serving_csr_pem: serving.csr_pem.clone(),
        });
        request.set_timeout(JOIN_TIMEOUT);
        match JoinClient::new(channel(network.clone(), address, options)?).join_worker(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let material = |certificate_pem, key_pem| TlsMaterial {
                    ca_pem: answer.ca_certificate_pem.clone(),
                    certificate_pem,
                    key_pem,
                };
                let masters = answer
                    .members
                    .iter()
                    .map(|m| Master { peer: m.peer_address.clone(), api: m.api_address.clone() });
                return Ok(NodeCredentials {
                    masters: masters.collect(),
                    settings: ClusterSettings::from_json(&answer.cluster_config_json)?,
                    cluster_id: answer.cluster_id.clone(),
                    client: material(answer.certificate_pem.clone(), client.key_pem),
                    serving: material(answer.serving_certificate_pem.clone(), serving.key_pem),
                });
            }
            Err(status) => refusals.push(format!("{address}: {}", status.message())),
        }
    }
    Err(Error::Refused(refusals.join("; ")))
}

/// Writes a file atomically and durably, readable only by its owner.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let temporary = path.with_extension("tmp");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_read_back_as_they_were_written() {
        let directory = std::env::temp_dir().join(format!("ephor-credentials-{}", std::process::id()));
        let pem =
            |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        let material = |text: &str| TlsMaterial {
            ca_pem: pem("CERTIFICATE", "ca"),
            certificate_pem: pem("CERTIFICATE", text) + &pem("CERTIFICATE", "ca"),
            key_pem: pem("PRIVATE KEY", text),
        };
        let credentials = NodeCredentials {
            client: material("client"),
            serving: material("serving"),
            settings: ClusterSettings::default(),
            masters: vec![Master { peer: "10.0.0.1:6444".into(), api: "10.0.0.1:6443".into() }],
            cluster_id: "c".into(),
        };
        credentials.store_certificates(&directory).unwrap();
        assert!(NodeCredentials::load(&directory).unwrap().is_none());
        credentials.store_record(&directory).unwrap();
        let read = NodeCredentials::load(&directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        let read = read.unwrap();
        for (read, written) in [(&read.client, &credentials.client), (&read.serving, &credentials.serving)] {
            assert_eq!(read.ca_pem, written.ca_pem);
            assert_eq!(read.certificate_pem, written.certificate_pem);
            assert_eq!(read.key_pem, written.key_pem);
        }
        assert_eq!((read.masters, read.cluster_id), (credentials.masters, credentials.cluster_id));
    }
}
