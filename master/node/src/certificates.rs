//! The certificates of one master: for the peer port, for its API server, and for
//! its API server as a client of nodes. A master holds the CA, so it issues them
//! itself: at every start, and while it runs once two thirds of their lifetime are
//! over. `build.rs` creates and runs this; `admin.rs` and `/metrics` show when each
//! certificate expires.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use master_apiserver::{ApiServer, TlsIdentity};
use proto_env::{CertificateInfo, Env, KUBELET_CLIENTS_ORGANIZATION, MASTERS_ORGANIZATION, TlsMaterial};
use proto_wire::settings::ClusterSettings;

use crate::config::MasterConfig;
use crate::pki::{self, ClusterKeys, Issued, KeyFiles, Subject, Usage, Validity};

/// Names in the serving certificate of every API server.
pub const API_NAMES: [&str; 6] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "localhost",
    "127.0.0.1",
    // Other masters and balancers address masters by this name in TLS.
    "master",
];
/// Longest pause between two looks at the wall clock, which may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// A certificate's name, as operators see it, and its expiry.
pub type Expiration = (&'static str, SystemTime);

/// Why certificates cannot be issued or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates cannot be issued.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The peer port does not accept the certificates.
    #[error("certificates: {0}")]
    Peer(#[from] proto_env::TlsError),
    /// The API server does not accept the certificates.
    #[error("certificates: {0}")]
    Api(#[from] master_apiserver::Error),
}

/// Issues the certificates of this master and knows when they expire.
pub struct Certificates {
    keys: Arc<ClusterKeys>,
    /// PEM of the CA that signs the serving certificates of nodes.
    node_ca_pem: String,
    /// This master's name.
    name: String,
    /// Names and addresses by which clients reach this master.
    names: Vec<String>,
    lifetime: Duration,
    files: KeyFiles,
    env: Env,
    state: Mutex<State>,
}

struct State {
    renew_at: SystemTime,
    expirations: Vec<Expiration>,
}

/// One certificate for each purpose, all issued at the same time.
struct Set {
    peer: Issued,
    serving: Issued,
    node_client: Issued,
}

/// The certificates that the API server starts with.
pub struct ApiCertificates {
    /// Presented to clients of the API.
    pub serving: TlsIdentity,
    /// Presented to nodes.
    pub node_client: TlsIdentity,
}

impl Certificates {
    /// Issues the first set of certificates and uses it on the peer port.
    ///
    /// # Errors
    /// Fails if the keys cannot be used, or a file cannot be written.
    pub fn start(
        config: &MasterConfig,
        settings: &ClusterSettings,
        keys: Arc<ClusterKeys>,
        env: &Env,
    ) -> Result<(Arc<Self>, ApiCertificates), Error> {
        let this = Self {
            node_ca_pem: keys.authority.node_serving()?.certificate_pem().to_owned(),
            name: config.name.clone(),
            names: names(config, settings),
            lifetime: config.certificate_lifetime(),
            files: KeyFiles::new(&config.data_dir, env.disk.clone()),
            env: env.clone(),
            state: Mutex::new(State { renew_at: SystemTime::UNIX_EPOCH, expirations: Vec::new() }),
            keys,
        };
        let set = this.make()?;
        this.files.store_issued("apiserver", &set.serving)?;
        let api = this.use_on_peer_port(set)?;
        Ok((Arc::new(this), api))
    }

    /// Returns when each certificate and the CA expire.
    pub fn expirations(&self) -> Vec<Expiration> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).expirations.clone()
    }

    /// Renews the certificates in time, for as long as this future is polled.
    pub async fn keep_renewed(&self, api: &ApiServer) -> Infallible {
        api.report_certificates(&self.expirations());
        let mut next = self.renew_at();
        loop {
            let pause = next.duration_since(self.env.clock.now()).unwrap_or_default();
            tokio::time::sleep(pause.clamp(Duration::from_millis(100), CHECK_INTERVAL)).await;
            let now = self.env.clock.now();
            if now < next {
                continue;
            }
            match self.renew(api) {
                Ok(()) => next = self.renew_at(),
                Err(error) => {
                    tracing::error!(%error, "the certificates of this master could not be renewed");
                    next = now + (self.lifetime / 60).min(CHECK_INTERVAL);
                }
            }
        }
    }

    fn renew(&self, api: &ApiServer) -> Result<(), Error> {
        let set = self.make()?;
        if let Err(error) = self.files.store_issued("apiserver", &set.serving) {
            // The file is only a copy for operators, so a full disk must not stop the renewal.
            tracing::warn!(%error, "the new serving certificate could not be stored");
        }
        let new = self.use_on_peer_port(set)?;
        api.set_serving_certificate(&new.serving)?;
        api.set_node_client(new.node_client)?;
        api.report_certificates(&self.expirations());
        tracing::info!("the certificates of this master were renewed");
        Ok(())
    }

    fn renew_at(&self) -> SystemTime {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).renew_at
    }

    fn make(&self) -> Result<Set, Error> {
        let authority = &self.keys.authority;
        let validity = Validity::new(self.env.clock.now(), self.lifetime);
        let peer = Subject::new(&self.name, MASTERS_ORGANIZATION);
        let serving = Subject::new("kube-apiserver", MASTERS_ORGANIZATION);
        let node_client = Subject::new("kube-apiserver-kubelet-client", KUBELET_CLIENTS_ORGANIZATION);
        Ok(Set {
            peer: authority.issue(&peer, &self.names, Usage::Peer, validity)?,
            serving: authority.issue(&serving, &self.names, Usage::Server, validity)?,
            node_client: authority.issue(&node_client, &[], Usage::Client, validity)?,
        })
    }

    fn use_on_peer_port(&self, set: Set) -> Result<ApiCertificates, Error> {
        let ca_pem = self.keys.authority.certificate_pem();
        let infos = [
            ("ca", CertificateInfo::from_pem(ca_pem)?),
            ("peer", CertificateInfo::from_pem(&set.peer.chain_pem)?),
            ("apiserver", CertificateInfo::from_pem(&set.serving.chain_pem)?),
            ("apiserver-kubelet-client", CertificateInfo::from_pem(&set.node_client.chain_pem)?),
        ];
        self.env.network.set_material(&TlsMaterial {
            ca_pem: ca_pem.to_owned(),
            certificate_pem: set.peer.chain_pem,
            key_pem: set.peer.key_pem,
        })?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State {
            renew_at: infos[1].1.renew_at(),
            expirations: infos.iter().map(|(name, info)| (*name, info.not_after)).collect(),
        };
        let identity = |issued: Issued, ca_pem: &str| TlsIdentity {
            certificate_pem: issued.chain_pem,
            key_pem: issued.key_pem,
            ca_pem: ca_pem.to_owned(),
        };
        Ok(ApiCertificates {
            serving: identity(set.serving, ca_pem),
            node_client: identity(set.node_client, &self.node_ca_pem),
        })
    }
}

/// Returns every name and address in the certificates of a master.
fn names(config: &MasterConfig, settings: &ClusterSettings) -> Vec<String> {
    let mut names: Vec<String> = API_NAMES.iter().map(|n| (*n).to_owned()).collect();
    names.push(format!("kubernetes.default.svc.{}", settings.cluster_domain));
    names.push(config.name.clone());
    names.push(config.advertise_address.to_string());
    names.push(settings.api_service_address().to_string());
    names.extend(settings.control_plane_endpoint.iter().map(|e| host_of(e)));
    names.extend(config.tls_san.iter().cloned());
    // Overlay addresses, where workers serve pods' `kubernetes.default`, are not listed: clients there
    // check the name only.
    names
}

/// Returns the host of `HOST:PORT`, without the brackets of IPv6.
pub fn host_of(endpoint: &str) -> String {
    endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host).trim_matches(['[', ']']).to_owned()
}
