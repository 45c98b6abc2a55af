//! Masters within the test's process, over loopback TLS with certificates of their own CA, on temporary
//! data directories. They can be started, killed and restarted.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto_env::grpc::incoming;
use proto_env::{
    AppendFile, CancellationToken, Disk, Env, MASTERS_ORGANIZATION, Network, Space, SystemDisk, TlsMaterial,
    TlsNetwork,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use storage::{Mutation, Precondition, Txn, TxnOutcome};
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;

use crate::*;

/// Size of the log in bytes above which it is purged early.
pub const LOG_BYTES: u64 = 1024 * 1024;
/// Time limit of everything that a test waits for.
pub const LONG: Duration = Duration::from_secs(180);

/// A disk with as much free space as the test sets, and whose syncs of open files do not end while the test
/// wants it so.
pub struct TestDisk {
    pub free_mib: AtomicU64,
    pub stalled: Arc<AtomicBool>,
}

/// A file on a [`TestDisk`].
struct TestFile {
    file: Box<dyn AppendFile>,
    stalled: Arc<AtomicBool>,
}

impl Default for TestDisk {
    fn default() -> Self {
        Self { free_mib: AtomicU64::new(10_000), stalled: Arc::default() }
    }
}

impl AppendFile for TestFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.append(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        while self.stalled.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.file.sync()
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }
}

impl Disk for TestDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(TestFile { file: SystemDisk.open_append(path)?, stalled: self.stalled.clone() }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        SystemDisk.read(path)
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        SystemDisk.read_at(path, offset, length)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemDisk.list(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        SystemDisk.replace(path, bytes)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_dir_all(path)
    }
    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_tree(path)
    }
    fn space(&self, _: &Path) -> io::Result<Option<Space>> {
        Ok(Some(Space { free: self.free_mib.load(Ordering::Relaxed) << 20, total: 1 << 40 }))
    }
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ephor-test-ca");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn network(&self, name: &str, organization: &str) -> Arc<dyn Network> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let material = TlsMaterial {
            ca_pem: self.pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        };
        Arc::new(TlsNetwork::new(&material).unwrap())
    }
}

/// A running master of the test cluster.
pub struct Running {
    pub consensus: Arc<Consensus>,
    server: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Drop for Running {
    /// Ends what a test leaves running, which would take the processor from the tests after it.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A master of the test cluster, running or stopped.
pub struct Master {
    pub id: NodeId,
    pub name: String,
    pub address: SocketAddr,
    pub directory: PathBuf,
    pub network: Arc<dyn Network>,
    pub disk: Arc<TestDisk>,
    pub cluster_id: String,
    pub autopilot: AutopilotConfig,
    /// Addresses of other masters with which it is started.
    pub peers: Vec<String>,
    running: Option<Running>,
}

pub struct Cluster {
    pub authority: Authority,
    pub masters: Vec<Master>,
    directory: tempfile::TempDir,
    /// Heartbeat interval and election timeouts. Other work on a busy machine takes half or more of the
    /// default timeouts, so tests use longer ones unless they measure.
    pub timers: [Duration; 3],
    /// Autopilot settings of masters that are made from now on.
    pub autopilot: AutopilotConfig,
}

pub fn env(network: &Arc<dyn Network>) -> Env {
    Env::production(network.clone(), CancellationToken::new())
}

impl Master {
    pub fn config(&self, timers: [Duration; 3]) -> ConsensusConfig {
        ConsensusConfig {
            node_id: self.id,
            cluster_id: self.cluster_id.clone(),
            address: self.master_address(),
            data_dir: self.directory.clone(),
            data_key: [9; 32],
            heartbeat: timers[0],
            election_min: timers[1],
            election_max: timers[2],
            log_bytes: LOG_BYTES,
            snapshot_count: DEFAULT_SNAPSHOT_COUNT,
            disk_reserve: DiskReserve::default(),
            objects: Objects::Sled,
            started_before: false,
            autopilot: self.autopilot,
            peers: self.peers.clone(),
        }
    }

    async fn start(&mut self, timers: [Duration; 3]) {
        let config = self.config(timers);
        // Tasks of the previous run may hold its files a little longer.
        let consensus = wait_for("the data directory is free", async || {
            let env = Env { disk: self.disk.clone(), ..env(&self.network) };
            Consensus::start(config.clone(), env).await.ok()
        })
        .await;
        let stop = CancellationToken::new();
        let (service, network) = (consensus.raft_service(), self.network.clone());
        let (address, stopped) = (self.address.to_string(), stop.clone().cancelled_owned());
        let server = consensus.runtime().spawn(async move {
            let listener = loop {
                match network.listen(&address).await {
                    Ok(listener) => break listener,
                    // The previous run may hold the port a little longer.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            let router = Server::builder().add_service(service);
            router.serve_with_incoming_shutdown(incoming(listener), stopped).await.unwrap();
        });
        self.running = Some(Running { consensus, server, stop });
    }

    pub fn master_address(&self) -> MasterAddress {
        let address = self.address.to_string();
        MasterAddress {
            name: self.name.clone(),
            peer_address: address,
            api_address: "127.0.0.1:1".to_owned(),
            replaces: 0,
        }
    }
}

impl Cluster {
    /// Makes a cluster of one master and waits until it leads.
    pub async fn one() -> Self {
        // Logs for a failed test: RUST_LOG=openraft=info,consensus=info.
        let logging = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        let _ = logging.with_test_writer().try_init();
        let ms = Duration::from_millis;
        let mut cluster = Self {
            authority: Authority::new(),
            masters: vec![],
            directory: tempfile::tempdir().unwrap(),
            timers: [ms(100), ms(500), ms(1000)],
            autopilot: AutopilotConfig::default(),
        };
        cluster.push(FIRST_NODE_ID).await;
        cluster.consensus(0).initialize().await.unwrap();
        cluster.leader().await;
        cluster
    }

    /// Makes a cluster of `size` voters.
    pub async fn of(size: usize) -> Self {
        let mut cluster = Self::one().await;
        while cluster.masters.len() < size {
            cluster.join().await;
        }
        cluster.wait_voters(size).await;
        cluster
    }

    async fn push(&mut self, id: NodeId) {
        let name = format!("master-{}", self.masters.len());
        let network = self.authority.network(&name, MASTERS_ORGANIZATION);
        let mut master = self.master(id, name, free_address(), network);
        master.start(self.timers).await;
        self.masters.push(master);
    }

    fn master(&self, id: NodeId, name: String, address: SocketAddr, network: Arc<dyn Network>) -> Master {
        let directory = self.directory.path().join(&name);
        let (cluster_id, peers, running) = ("test".to_owned(), Vec::new(), None);
        Master {
            id,
            name,
            address,
            directory,
            network,
            disk: Arc::default(),
            cluster_id,
            autopilot: self.autopilot,
            peers,
            running,
        }
    }

    /// Adds a master and starts it; returns its id.
    pub async fn join(&mut self) -> NodeId {
        self.join_in_place_of(0).await
    }

    /// Adds a master that is to replace a voter (0: none) and starts it.
    pub async fn join_in_place_of(&mut self, replaces: NodeId) -> NodeId {
        let name = format!("master-{}", self.masters.len());
        let network = self.authority.network(&name, MASTERS_ORGANIZATION);
        let mut master = self.master(0, name, free_address(), network);
        let info = MasterAddress { replaces, ..master.master_address() };
        master.id = self.any().add_master(info, LONG).await.unwrap();
        master.start(self.timers).await;
        let id = master.id;
        self.masters.push(master);
        id
    }

    pub fn consensus(&self, position: usize) -> &Arc<Consensus> {
        &self.masters[position].running.as_ref().unwrap().consensus
    }

    pub fn running(&self) -> impl Iterator<Item = &Arc<Consensus>> {
        self.masters.iter().filter_map(|master| master.running.as_ref()).map(|running| &running.consensus)
    }

    pub fn any(&self) -> &Arc<Consensus> {
        self.running().next().unwrap()
    }

    /// Ends a master as abruptly as is possible within one process.
    pub async fn kill(&mut self, position: usize) {
        let mut running = self.masters[position].running.take().unwrap();
        running.stop.cancel();
        tokio::time::timeout(LONG, running.consensus.shutdown()).await.expect("the master stops");
        tokio::time::timeout(LONG, &mut running.server).await.expect("its server stops").unwrap();
    }

    pub async fn restart(&mut self, position: usize) {
        let timers = self.timers;
        self.masters[position].start(timers).await;
    }

    /// Restarts a master at another address.
    pub async fn restart_elsewhere(&mut self, position: usize) {
        let timers = self.timers;
        let master = &mut self.masters[position];
        master.address = free_address();
        master.start(timers).await;
    }

    /// Waits for a leader and returns its position.
    pub async fn leader(&self) -> usize {
        wait_for("a leader", async || {
            let leads = |master: &Master| {
                let running = master.running.as_ref()?;
                running.consensus.leadership().borrow().leading.then_some(())
            };
            self.masters.iter().position(|master| leads(master).is_some())
        })
        .await
    }

    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.masters.len())
            .find(|position| *position != leader && self.masters[*position].running.is_some())
            .unwrap()
    }

    pub async fn wait_voters(&self, count: usize) {
        wait_for("the voters", async || {
            let agreed = |consensus: &Arc<Consensus>| {
                consensus.members().iter().filter(|member| member.voter).count() == count
            };
            self.running().all(agreed).then_some(())
        })
        .await
    }

    /// Waits until all running replicas are at one revision with one digest.
    pub async fn converge(&self) -> storage::Digest {
        let revision = {
            self.any().read_barrier(LONG).await.unwrap();
            self.any().store().revision()
        };
        let mut digests = vec![];
        for consensus in self.running() {
            digests.push(consensus.state_digest(Some(revision), LONG).await.unwrap());
        }
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
        digests[0]
    }
}

/// Returns a loopback address on which nobody listens.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until `look` returns a value.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(LONG, found).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}

pub fn put(key: &str, value: impl Into<Bytes>) -> Mutation {
    Mutation::Put { key: key.to_owned(), value: value.into() }
}

pub fn create(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { preconditions: vec![Precondition::Absent(key.to_owned())], mutations: vec![put(key, value)] }
}

pub fn options() -> ProposeOptions {
    ProposeOptions { fence: None, deadline: LONG }
}

pub async fn write(consensus: &Consensus, key: &str, value: &str) -> u64 {
    match consensus.propose(create(key, value.to_owned()), options()).await.unwrap() {
        TxnOutcome::Committed { revisions } => revisions[0],
        other => panic!("{key}: {other:?}"),
    }
}
