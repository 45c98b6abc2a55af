//! Puts a master together from its configuration and an `env`. Order matters:
//! identity, consensus, API server and peer port, then what follows leadership.

use std::sync::Arc;
use std::time::Duration;

use consensus::{Consensus, ConsensusConfig, DiskReserve, MasterAddress, Objects};
use futures::FutureExt;
use kube::Client;
use master_apiserver::settings::ClusterSettings as ApiSettings;
use master_apiserver::{ApiServer, UserInfo};
use master_client::Informers;
use proto_env::Env;
use proto_env::grpc::{MainRuntimeService, accept_apart};
use proto_env::supervise::{catch, supervise};
use proto_wire::cluster::admin_server::AdminServer;
use proto_wire::cluster::join_server::JoinServer;
use proto_wire::cluster::liveness_server::LivenessServer;
use proto_wire::settings::ClusterSettings;
use tokio::sync::watch;
use tonic::transport::Server;

use crate::admin::AdminService;
use crate::backup;
use crate::certificates::{self, Certificates};
use crate::config::{self, MasterConfig};
use crate::identity::{self, MasterIdentity};
use crate::join::JoinService;
use crate::leader::Leader;
use crate::liveness::Liveness;
use crate::peer::LivenessService;
use crate::pki::ClusterKeys;
use crate::undecodable;

/// Deadline for closing the log and the object store.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size in bytes of a request to join, which comes from an unauthenticated caller.
const JOIN_LIMIT_BYTES: usize = 64 * 1024;
/// Why a master cannot run; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The master has no identity and gets none.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Certificates cannot be made or used.
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
    /// The replicated store cannot start.
    #[error("store: {0}")]
    Consensus(#[from] consensus::Error),
    /// The API server cannot start.
    #[error("API server: {0}")]
    Api(#[from] master_apiserver::Error),
    /// A listening port is taken.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address to listen on.
        address: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The peer port has failed.
    #[error("peer port: {0}")]
    Peer(#[from] tonic::transport::Error),
    /// The disk is full, or nearly.
    #[error("{path} has {free_mib} MiB free, at least {floor_mib} are needed to start: free some space")]
    NoSpace {
        /// The data directory.
        path: String,
        /// MiB that are free.
        free_mib: u64,
        /// MiB that must be free.
        floor_mib: u64,
    },
    /// The free space of the disk cannot be read.
    #[error("{path}: {source}")]
    Disk {
        /// The data directory.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The store has failed while running, or this master was removed from its cluster: the process
    /// must end.
    #[error("this master cannot go on: {0}")]
    Failed(String),
}

/// A master that is built but not running.
pub struct Master {
    config: MasterConfig,
    settings: ClusterSettings,
    consensus: Arc<Consensus>,
    api: ApiServer,
    keys: Arc<ClusterKeys>,
    certificates: Arc<Certificates>,
    env: Env,
}

/// Builds a master in `env`, whose network needs no certificates yet, with its objects in `objects`.
pub async fn build(config: MasterConfig, env: Env, objects: Objects) -> Result<Master, Error> {
    config.validate()?;
    has_room(&config, &env)?;
    let identity = MasterIdentity::obtain(&config, &env).await?;
    let keys = identity.keys.clone();
    let (certificates, issued) = Certificates::start(&config, &identity.settings, keys.clone(), &env)?;
    let consensus = start_consensus(&config, &identity, env.clone(), objects).await?;
    let api = ApiServer::new(
        master_apiserver::Config {
            consensus: consensus.clone(),
            settings: api_settings(&identity.settings, &config),
            serving: issued.serving,
            node_client: issued.node_client,
            service_account_keys: keys
                .service_account_keys(config.certificate_lifetime())
                .map_err(certificates::Error::from)?,
            token_authenticators: Vec::new(),
            advertise_address: config.api_address().to_string(),
            limits: master_apiserver::ServerLimits::default(),
        },
        &env,
    )?;
    if identity.founding {
        api.begin_service_account_keys().await?;
    }
    if !identity.started_before {
        identity.started(&config.data_dir, env.disk.as_ref())?;
    }
    Ok(Master { settings: identity.settings, config, consensus, api, keys, certificates, env })
}

/// Refuses to start on a nearly full disk, where opening the database may never finish.
fn has_room(config: &MasterConfig, env: &Env) -> Result<(), Error> {
    let path = config.data_dir.display().to_string();
    let Some(space) =
        env.disk.space(&config.data_dir).map_err(|source| Error::Disk { path: path.clone(), source })?
    else {
        return Ok(());
    };
    let floor = space.floor(config.disk_reserve_mib << 20);
    if space.free >= floor {
        return Ok(());
    }
    Err(Error::NoSpace { path, free_mib: space.free >> 20, floor_mib: floor.div_ceil(1 << 20) })
}

async fn start_consensus(
    config: &MasterConfig,
    identity: &MasterIdentity,
    env: Env,
    objects: Objects,
) -> Result<Arc<Consensus>, Error> {
    let consensus = Consensus::start(
        ConsensusConfig {
            node_id: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            address: MasterAddress {
                name: config.name.clone(),
                peer_address: config.peer_address().to_string(),
                api_address: config.api_address().to_string(),
                replaces: 0,
            },
            data_dir: config.data_dir.clone(),
            data_key: *identity.keys.data_key,
            heartbeat: Duration::from_millis(config.timers.heartbeat_ms),
            election_min: Duration::from_millis(config.timers.election_min_ms),
            election_max: Duration::from_millis(config.timers.election_max_ms),
            log_bytes: config.log_mib << 20,
            snapshot_count: config.snapshot_count,
            disk_reserve: DiskReserve { bytes: config.disk_reserve_mib << 20 },
            objects,
            started_before: identity.started_before,
            autopilot: config.autopilot.into(),
            peers: config.peers.iter().chain(config.join.iter().flatten()).cloned().collect(),
        },
        env,
    )
    .await?;
    if identity.founding {
        consensus.initialize().await?;
        tracing::info!(cluster = identity.cluster_id, "a new cluster was created");
    }
    Ok(consensus)
}

fn api_settings(settings: &ClusterSettings, config: &MasterConfig) -> ApiSettings {
    ApiSettings {
        service_cidr: settings.service_cidr.into(),
        node_port_range: settings.node_port_range.0..=settings.node_port_range.1,
        cluster_domain: settings.cluster_domain.clone(),
        max_token_seconds: config.service_account_max_token_expiration_s.and_then(|s| i64::try_from(s).ok()),
        ..ApiSettings::default()
    }
}

// === impl Master ===

impl Master {
    /// The settings that all nodes of the cluster share.
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    /// The configuration this master was built from.
    pub fn config(&self) -> &MasterConfig {
        &self.config
    }

    /// A client of this master's own API, for what runs in the same process (the service proxy).
    pub fn client(&self) -> Client {
        self.api.local_client(UserInfo::authenticated("system:kube-controller-manager", &[]), None)
    }

    /// The consensus member of this master, for tests and the simulation.
    pub fn consensus(&self) -> &Arc<Consensus> {
        &self.consensus
    }

    /// The API addresses of the voting masters, updated as membership changes: a master that has
    /// just joined votes once it has caught up, and is not to be asked before.
    pub fn masters(&self) -> watch::Receiver<Vec<std::net::SocketAddr>> {
        let (consensus, shutdown) = (self.consensus.clone(), self.env.shutdown.clone());
        let addresses = |consensus: &Consensus| -> Vec<std::net::SocketAddr> {
            let members = consensus.members();
            members.iter().filter(|m| m.voter).filter_map(|m| m.api_address.parse().ok()).collect()
        };
        let (sender, receiver) = watch::channel(addresses(&consensus));
        tokio::spawn(supervise("masters", move || {
            let (consensus, shutdown, sender) = (consensus.clone(), shutdown.clone(), sender.clone());
            async move {
                let mut interval = tokio::time::interval(Duration::from_secs(1));
                loop {
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        _ = interval.tick() => {}
                    }
                    let now = addresses(&consensus);
                    sender.send_if_modified(|known| {
                        let changed = *known != now;
                        known.clone_from(&now);
                        changed
                    });
                }
            }
        }));
        receiver
    }

    /// Serves until shutdown, or until a part of the master fails.
    pub async fn run(self) -> Result<(), Error> {
        let address = std::net::SocketAddr::new(self.config.bind_address, self.config.api_port);
        let listener = self
            .env
            .network
            .listen_api(address)
            .await
            .map_err(|source| Error::Listen { address: address.to_string(), source })?;
        let peer = std::net::SocketAddr::new(self.config.bind_address, self.config.peer_port).to_string();
        let (network, at) = (self.env.network.clone(), peer.clone());
        // The peer port listens on the consensus runtime, so that Raft messages never wait for other work.
        let listening = self.consensus.runtime().run(async move { network.listen(&at).await }).await;
        let peers =
            listening.and_then(|peers| peers).map_err(|source| Error::Listen { address: peer, source })?;
        let liveness = Liveness::new(self.env.clock.clone());
        let (healthy, masters) = watch::channel(vec![self.config.api_address()]);
        let store = self.consensus.store().clone();
        let ask = Arc::new(move || store.ask_progress());
        let informers = Informers::start(self.client(), ask, &self.env.shutdown);
        let broken = informers.broken.clone();
        let report_broken = supervise("undecodable-objects", || {
            undecodable::report(self.consensus.clone(), broken.clone(), self.env.shutdown.clone())
        });
        let backups = self.backups();
        let leader = Leader {
            backups: backups.clone(),
            consensus: self.consensus.clone(),
            api: self.api.clone(),
            informers,
            liveness: liveness.clone(),
            controllers: self.controllers(masters),
            healthy,
            timers: self.config.timers,
            event_ttl: self.config.event_ttl(),
            env: self.env.clone(),
        };
        let serve_peers = self.serve_peers(liveness, backups, peers);
        let serve_api = self.api.serve(listener);
        let result = tokio::select! {
            biased;
            reason = self.consensus.failed() => Err(Error::Failed(reason)),
            result = serve_peers => result,
            result = serve_api => result.map_err(Error::from),
            ended = catch("leader", leader.run()) => ended.map_err(|panicked| Error::Failed(panicked.to_string())),
            () = report_broken => Ok(()),
            never = self.certificates.keep_renewed(&self.api) => match never {},
        };
        // A failure ends the servers too, and theirs may be noticed first.
        let result = match (result, self.consensus.failed().now_or_never()) {
            (Ok(()), Some(reason)) => Err(Error::Failed(reason)),
            (result, _) => result,
        };
        self.env.shutdown.cancel();
        // A failed disk may never answer; the log already holds every acknowledged write.
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.consensus.shutdown()).await.is_err() {
            tracing::error!("the object store did not close in time; this master ends without it");
        }
        result
    }

    fn controllers(&self, masters: watch::Receiver<Vec<std::net::SocketAddr>>) -> master_controllers::Config {
        let api_service_ip = match self.settings.api_service_address() {
            std::net::IpAddr::V4(address) => address,
            std::net::IpAddr::V6(_) => std::net::Ipv4Addr::UNSPECIFIED,
        };
        master_controllers::Config {
            cluster_ca: self.keys.authority.certificate_pem().to_owned(),
            cluster_cidr: self.settings.pod_cidr,
            node_cidr_prefix: 24,
            api_service_ip,
            dns_service_ip: self.settings.dns_address,
            masters,
            clock: self.env.clock.clone(),
        }
    }

    /// Creates the source of backups, for operators and for the leader's schedule.
    fn backups(&self) -> Arc<backup::BackupSource> {
        let (consensus, keys) = (self.consensus.clone(), self.keys.clone());
        let (settings, name) = (self.settings.clone(), self.config.name.clone());
        backup::BackupSource::new(consensus, keys, settings, name, self.env.clone())
    }

    async fn serve_peers(
        &self,
        liveness: Arc<Liveness>,
        backups: Arc<backup::BackupSource>,
        listener: Box<dyn proto_env::Listener>,
    ) -> Result<(), Error> {
        let join = JoinService {
            consensus: self.consensus.clone(),
            keys: self.keys.clone(),
            settings: self.settings.clone(),
            certificate_lifetime: self.config.certificate_lifetime(),
            env: self.env.clone(),
        };
        let heard = liveness.clone();
        let nodes = LivenessService { consensus: self.consensus.clone(), liveness, env: self.env.clone() };
        let (consensus, network) = (self.consensus.clone(), self.env.network.clone());
        let certificates = self.certificates.clone();
        let admin = AdminService {
            consensus,
            network,
            backups,
            certificates,
            api: self.api.clone(),
            liveness: heard,
        };
        let runtime = self.consensus.runtime();
        let join = JoinServer::new(join).max_decoding_message_size(JOIN_LIMIT_BYTES);
        let admin = AdminServer::new(admin).max_encoding_message_size(proto_wire::MESSAGE_LIMIT_BYTES);
        // Two servers of the same services: masters' connections are served by the consensus runtime, where
        // only Raft calls run; all other connections are served by the main runtime.
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .max_concurrent_streams(256)
            .add_service(self.consensus.raft_service())
            .add_service(MainRuntimeService::new(join, runtime))
            .add_service(MainRuntimeService::new(LivenessServer::new(nodes), runtime))
            .add_service(MainRuntimeService::new(admin, runtime));
        let accepted = accept_apart(listener, runtime);
        let stop = || self.env.shutdown.clone().cancelled_owned();
        let masters = router.clone().serve_with_incoming_shutdown(accepted.masters, stop());
        let others = router.serve_with_incoming_shutdown(accepted.others, stop());
        let masters = async {
            let served = runtime.run(masters).await;
            served.map_err(|error| Error::Failed(error.to_string()))?.map_err(Error::from)
        };
        tokio::try_join!(masters, async { others.await.map_err(Error::from) })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proto_env::{CancellationToken, TlsNetwork};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_cluster_has_recorded_its_service_account_key_before_it_serves() {
        let directory = tempfile::tempdir().unwrap();
        let config = MasterConfig {
            name: "m1".to_owned(),
            data_dir: directory.path().to_owned(),
            advertise_address: std::net::Ipv4Addr::LOCALHOST.into(),
            ..MasterConfig::default()
        };
        let env = || Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
        identity::create(&config, &env()).unwrap();
        let mut revisions = Vec::new();
        for _start in ["first", "second"] {
            let master = build(config.clone(), env(), Objects::Sled).await.unwrap();
            let record = master.consensus().store().get("/ephor/service-account-keys").unwrap();
            let text: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            // Its tokens are counted from the beginning, unlike those of a cluster that is older than the record.
            assert_eq!(text["keys"][0]["tokensUntil"], 0, "{text}");
            revisions.push(record.mod_revision);
            master.consensus().shutdown().await;
        }
        assert_eq!(revisions[0], revisions[1], "once in a cluster's life");
    }
}
