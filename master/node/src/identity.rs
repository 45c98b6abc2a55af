//! The identity of a master in its cluster: made by [`create`] (`ephor master
//! --init`, once a cluster, which runs nothing), got by `--join`, or read back from
//! the data directory. A master that is started never creates a cluster: with an
//! empty directory and no `--join` it refuses, so that a master whose disk was replaced
//! cannot begin a second cluster at its old address.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use consensus::{Fences, NodeId};
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{Disk, Env, MASTERS_ORGANIZATION, Purpose};
use proto_wire::cluster::JoinMasterRequest;
use proto_wire::cluster::JoinMasterResponse;
use proto_wire::cluster::join_client::JoinClient;
use proto_wire::settings::{self, ClusterSettings};
use proto_wire::token::{self, JoinToken};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::MasterConfig;
use crate::pki::files::write_private;
use crate::pki::{self, Authority, ClusterKeys, KeyFiles};

/// Deadline for one master to answer the join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Id of a cluster's first master.
const FIRST_ID: NodeId = 1;

/// The identity of a master, as its data directory holds it.
pub struct MasterIdentity {
    /// The master's id in the Raft group.
    pub node_id: NodeId,
    /// The cluster's id.
    pub cluster_id: String,
    /// The settings that all nodes of the cluster share.
    pub settings: ClusterSettings,
    /// The cluster's CA and keys.
    pub keys: Arc<ClusterKeys>,
    /// Whether this start creates the cluster.
    pub founding: bool,
    /// Whether the store has been started before, so that its files must exist.
    pub started_before: bool,
    /// Ids of lost clusters that this cluster continues, as a joining master is told.
    pub(crate) supersedes: Vec<String>,
}

/// Content of `DATA/node.json`, which is written last: where it exists, the other files exist too.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    node_id: NodeId,
    cluster_id: String,
    /// Whether the store has been created; false when this file is first written.
    initialized: bool,
    settings: String,
    /// SHA-256 of the other fields as JSON, in hexadecimal; records of earlier versions have none.
    #[serde(default)]
    checksum: Option<String>,
}

impl Record {
    fn sum(&self) -> Result<String, serde_json::Error> {
        let parts = serde_json::to_vec(&(self.node_id, &self.cluster_id, self.initialized, &self.settings))?;
        Ok(Sha256::digest(parts).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the record matches its checksum.
    fn is_whole(&self) -> bool {
        self.checksum.is_none() || self.sum().ok() == self.checksum
    }
}

/// Why a master has no identity; each text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory is empty, and there is no `--join` to fill it.
    #[error(
        "{data_dir} is empty: if {name} was a master of a cluster and lost its data, run `ephor members replace \
         {name}` there and start it with what that prints (--join ... --replace ...); a new master starts with \
         what `ephor members add` prints; only a new cluster is created, once, with `ephor master --init`"
    )]
    Empty {
        /// The data directory.
        data_dir: PathBuf,
        /// The master's name.
        name: String,
    },
    /// `--init` was given, but the data directory is not empty.
    #[error(
        "{0} is not empty ({1} is there): --init creates a new cluster and is needed once; start this master \
         without it"
    )]
    NotEmpty(PathBuf, String),
    /// A restore into this data directory was begun and not finished.
    #[error("{0} is half restored: run `ephor backup restore` again (or remove the directory)")]
    Restoring(PathBuf),
    /// Keys cannot be made or read.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The token does not parse.
    #[error("the token is malformed: {0}")]
    Token(#[from] token::Error),
    /// No master accepted this master's request to join.
    #[error("joining failed: {0}")]
    Refused(String),
    /// A file differs from what was written.
    #[error("{0} is damaged: remove the data directory and join again")]
    Damaged(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Settings contradict each other.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The file that lists lost clusters cannot be written.
    #[error(transparent)]
    Fences(#[from] consensus::Error),
    /// The gRPC channel to another master cannot be created.
    #[error("channel: {0}")]
    Channel(#[from] tonic::transport::Error),
    /// The answer of the master that was asked is malformed.
    #[error("the answer to the join is malformed: {0}")]
    Answer(&'static str),
}

/// Creates a cluster: lays out the data directory of its first master with new keys, and
/// gives the cluster's id. `build` goes on from there.
///
/// # Errors
/// Fails if there is anything in the data directory, or a file cannot be written.
pub fn create(config: &MasterConfig, env: &Env) -> Result<String, Error> {
    let data_dir = &config.data_dir;
    if crate::backup::unfinished(data_dir, env.disk.as_ref()) {
        return Err(Error::Restoring(data_dir.clone()));
    }
    let there = match env.disk.list(data_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|source| Error::File { path: data_dir.clone(), source })?,
    };
    // Keys without `node.json` are left by an earlier attempt that was interrupted.
    if let Some(name) = there.into_iter().find(|name| !["pki", "lost+found"].contains(&&name[..])) {
        return Err(Error::NotEmpty(data_dir.clone(), name));
    }
    let mut id = [0; 16];
    env.random.fill(&mut id);
    let cluster_id = uuid::Builder::from_random_bytes(id).into_uuid().to_string();
    let now = env.clock.now().into();
    let keys = ClusterKeys::create(&cluster_id, now, |bytes| env.random.fill(bytes))?;
    prepare(config, env.disk.clone(), &cluster_id, keys)?;
    Ok(cluster_id)
}

/// Lays out the data directory of a master that creates a cluster with existing keys; `build` goes on from
/// there. Used by the simulation, which brings its own keys.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn prepare(
    config: &MasterConfig,
    disk: Arc<dyn Disk>,
    cluster_id: &str,
    keys: ClusterKeys,
) -> Result<(), Error> {
    let (cluster_id, settings) = (cluster_id.to_owned(), config.cluster.clone());
    let (node_id, founding, started_before) = (FIRST_ID, true, false);
    let (keys, supersedes) = (Arc::new(keys), Vec::new());
    let identity =
        MasterIdentity { node_id, cluster_id, settings, keys, founding, started_before, supersedes };
    KeyFiles::new(&config.data_dir, disk.clone()).store(&identity.keys)?;
    identity.store(&config.data_dir, disk.as_ref(), false)
}

impl MasterIdentity {
    /// Reads the identity from the data directory, or joins a cluster.
    ///
    /// # Errors
    /// Fails if the directory is empty and there is no master to join, or reading or joining fails.
    pub async fn obtain(config: &MasterConfig, env: &Env) -> Result<Self, Error> {
        if crate::backup::unfinished(&config.data_dir, env.disk.as_ref()) {
            return Err(Error::Restoring(config.data_dir.clone()));
        }
        let path = config.data_dir.join("node.json");
        match env.disk.read(&path) {
            Ok(bytes) => {
                if config.join.is_some() {
                    tracing::info!("this master is in a cluster already: --join names other masters");
                }
                return Self::load(config, env, &bytes, path);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { path, source }),
        }
        let identity = match (&config.join, &config.token) {
            (Some(addresses), Some(token)) => join(config, env, addresses, &token.parse()?).await?,
            _ => {
                return Err(Error::Empty { data_dir: config.data_dir.clone(), name: config.name.clone() });
            }
        };
        KeyFiles::new(&config.data_dir, env.disk.clone()).store(&identity.keys)?;
        if !identity.supersedes.is_empty() {
            let fences = Fences { supersedes: identity.supersedes.clone(), tell: Vec::new() };
            fences.store(&config.data_dir, env.disk.as_ref())?;
        }
        identity.store(&config.data_dir, env.disk.as_ref(), false)?;
        Ok(identity)
    }

    /// Records that the store was created: from now on its files must exist.
    pub fn started(&self, data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
        self.store(data_dir, disk, true)
    }

    fn load(config: &MasterConfig, env: &Env, bytes: &[u8], path: PathBuf) -> Result<Self, Error> {
        let record: Record = serde_json::from_slice(bytes).map_err(|_| Error::Damaged(path.clone()))?;
        if !record.is_whole() {
            return Err(Error::Damaged(path));
        }
        Ok(Self {
            node_id: record.node_id,
            cluster_id: record.cluster_id,
            settings: ClusterSettings::from_json(&record.settings)?,
            keys: Arc::new(keys_of(&config.data_dir, env.disk.clone())?),
            founding: !record.initialized && record.node_id == FIRST_ID,
            started_before: record.initialized,
            supersedes: Vec::new(),
        })
    }

    fn store(&self, data_dir: &Path, disk: &dyn Disk, initialized: bool) -> Result<(), Error> {
        let mut record = Record {
            checksum: None,
            node_id: self.node_id,
            cluster_id: self.cluster_id.clone(),
            initialized,
            settings: self.settings.to_json(),
        };
        let path = data_dir.join("node.json");
        record.checksum = Some(record.sum().map_err(|_| Error::Damaged(path.clone()))?);
        let bytes = serde_json::to_vec_pretty(&record).map_err(|_| Error::Damaged(path.clone()))?;
        write_private(disk, &path, &bytes).map_err(|source| Error::File { path, source })
    }

    fn joined(answer: JoinMasterResponse) -> Result<Self, Error> {
        let data_key = <[u8; 32]>::try_from(&answer.data_key[..]).map_err(|_| Error::Answer("data key"))?;
        Ok(Self {
            node_id: answer.node_id,
            cluster_id: answer.cluster_id,
            settings: ClusterSettings::from_json(&answer.cluster_config_json)?,
            keys: Arc::new(ClusterKeys {
                authority: Authority::load(answer.ca_certificate_pem, answer.ca_key_pem)?,
                service_account_key_pem: answer.service_account_key_pem,
                data_key: Zeroizing::new(data_key),
            }),
            founding: false,
            started_before: false,
            supersedes: answer.supersedes,
        })
    }
}

/// Reads the keys of the master that owns `data_dir`.
pub(crate) fn keys_of(data_dir: &Path, disk: Arc<dyn Disk>) -> Result<ClusterKeys, Error> {
    let damaged = || Error::Damaged(data_dir.join("node.json"));
    KeyFiles::new(data_dir, disk).load()?.ok_or_else(damaged)
}

/// Gives the master that owns `data_dir` another id in another cluster.
pub(crate) fn rename(data_dir: &Path, disk: &dyn Disk, new: &consensus::MemberIdentity) -> Result<(), Error> {
    let path = data_dir.join("node.json");
    let bytes = disk.read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
    let mut record: Record = serde_json::from_slice(&bytes).map_err(|_| Error::Damaged(path.clone()))?;
    if !record.is_whole() {
        return Err(Error::Damaged(path));
    }
    record.node_id = new.node_id;
    record.cluster_id.clone_from(&new.cluster_id);
    record.checksum = Some(record.sum().map_err(|_| Error::Damaged(path.clone()))?);
    let bytes = serde_json::to_vec_pretty(&record).map_err(|_| Error::Damaged(path.clone()))?;
    write_private(disk, &path, &bytes).map_err(|source| Error::File { path, source })
}

async fn join(
    config: &MasterConfig,
    env: &Env,
    addresses: &[String],
    token: &JoinToken,
) -> Result<MasterIdentity, Error> {
    let mut refusals = Vec::new();
    for address in addresses {
        let options = ChannelOptions {
            purpose: Purpose::Join { ca_sha256: token.ca_hash },
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: CONNECT_TIMEOUT,
        };
        let mut request = tonic::Request::new(JoinMasterRequest {
            token: token.to_string(),
            name: config.name.clone(),
            peer_address: config.peer_address().to_string(),
            api_address: config.api_address().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            expected_masters: config.masters,
            replace: config.replace.clone().unwrap_or_default(),
        });
        request.set_timeout(JOIN_TIMEOUT);
        match JoinClient::new(channel(env.network.clone(), address, options)?).join_master(request).await {
            Ok(answer) => return MasterIdentity::joined(answer.into_inner()),
            Err(status) => refusals.push(format!("{address}: {}", status.message())),
        }
    }
    Err(Error::Refused(refusals.join("; ")))
}

#[cfg(test)]
mod tests {
    use proto_env::{CancellationToken, TlsNetwork};

    use super::*;

    fn master(data_dir: &Path) -> (MasterConfig, Env) {
        let config =
            MasterConfig { name: "m1".into(), data_dir: data_dir.to_owned(), ..MasterConfig::default() };
        (config, Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new()))
    }

    #[tokio::test]
    async fn a_cluster_is_created_once_and_never_by_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let (config, env) = master(directory.path());
        let wiped = MasterIdentity::obtain(&config, &env).await.err().unwrap().to_string();
        assert!(wiped.contains("ephor members replace m1"), "{wiped}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");

        let cluster_id = create(&config, &env).unwrap();
        let identity = MasterIdentity::obtain(&config, &env).await.unwrap();
        assert!(identity.founding && identity.cluster_id == cluster_id);
        let again = create(&config, &env).unwrap_err().to_string();
        assert!(again.contains("start this master without it"), "{again}");
        let same = MasterIdentity::obtain(&config, &env).await.unwrap();
        assert_eq!(same.cluster_id, cluster_id);
    }

    #[test]
    fn a_flipped_byte_in_the_record_is_noticed_or_means_nothing() {
        let mut record = Record {
            checksum: None,
            node_id: 3,
            cluster_id: "0b1e0e7e-6c53-4f0e-9c3e-2f6d7f2d8a11".to_owned(),
            initialized: true,
            settings: ClusterSettings::default().to_json(),
        };
        record.checksum = Some(record.sum().unwrap());
        let whole = serde_json::to_vec_pretty(&record).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let Ok(read) = serde_json::from_slice::<Record>(&bytes) else { continue };
                let same = serde_json::to_vec_pretty(&read).unwrap() == whole;
                assert!(!read.is_whole() || same, "byte {at}, bit {bit} means something else");
            }
        }
    }
}
