//! One machine of the simulated cluster with the master that runs on it: the same `master_node::build` as in
//! production, over simulated seams. Its disk outlives restarts; `world.rs` starts, pauses and kills the
//! process.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_spec::NodeName;
use chaos_spec::experiment::Cluster;
use consensus::{ChangeError, Consensus, NodeId};
use master_node::Objects;
use master_node::config::MasterConfig;
use master_node::pki::{Authority, ClusterKeys};
use proto_env::{Blocking, CancellationToken, Env};
use proto_wire::token::JoinToken;
use storage::backend::memory::MemoryHome;
use tokio::sync::mpsc;

use crate::checks::fence;
use crate::scale::Scale;
use crate::seams::clock::SimClock;
use crate::seams::disk::SimDisk;
use crate::seams::network::SimNetwork;
use crate::seams::random::SimRandom;
use crate::seams::sockets::Sockets;
use crate::workload::Workload;

/// Port of the Kubernetes API.
pub const API_PORT: u16 = 6443;
/// Port for traffic between masters and for workers' heartbeats.
pub const PEER_PORT: u16 = 6444;
/// Time until a master that ended is started again, as by a supervisor.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
const ORDERS_MAX: usize = 8;
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
const DATA_DIR: &str = "/master";

/// A machine for a master.
pub struct Machine {
    /// Name of the node: `m1`, `m2`, ...; `m1` founds the cluster.
    pub node: NodeName,
    /// The name as text.
    pub name: String,
    /// IP address of the machine.
    pub ip: IpAddr,
    /// The machine's disk, without the object store.
    pub disk: SimDisk,
    /// Storage of the master's objects.
    pub home: MemoryHome,
    /// The machine's clocks.
    pub clock: Arc<SimClock>,
    /// The machine's sockets: they survive a pause of the master, but not its end.
    pub sockets: Sockets,
    /// Seed, links and masters to ask, shared by all machines and clients.
    workload: Workload,
    scale: Scale,
    /// Number of log entries between two snapshots.
    snapshot_count: u64,
    starts: AtomicU64,
    /// Number of consecutive starts at which the master did not come up.
    failures: AtomicU64,
    /// Channel for orders to the running master; `None` if none runs.
    orders: Mutex<Option<mpsc::Sender<Order>>>,
}

/// An operator's request to a master.
#[derive(Debug, Clone)]
pub enum Order {
    /// Transfers leadership to this master.
    TransferLeader(NodeId),
    /// Removes these masters from the group.
    Remove(Vec<NodeId>),
}

impl Machine {
    /// Creates a machine with an empty disk; `m1` founds the cluster with fixed keys.
    ///
    /// # Errors
    /// Fails if the fixed keys do not parse.
    pub fn new(node: NodeName, workload: &Workload, cluster: &Cluster) -> Result<Arc<Self>> {
        let machine = Self {
            node,
            name: node.to_string(),
            ip: address(node.number()),
            disk: SimDisk::default(),
            home: MemoryHome::default(),
            clock: Arc::default(),
            sockets: Sockets::new(workload.links.clone()),
            workload: workload.clone(),
            scale: Scale::of(cluster.distance),
            snapshot_count: cluster.snapshot_count.unwrap_or(consensus::DEFAULT_SNAPSHOT_COUNT),
            starts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            orders: Mutex::default(),
        };
        if node.number() == 1 {
            let disk = Arc::new(machine.disk.clone());
            master_node::prepare(&machine.config(), disk, "simulation", keys()?)?;
        }
        Ok(Arc::new(machine))
    }

    /// Runs the master, and starts it again whenever it ends, until the process is dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            match self.once().await {
                Ok(()) => tracing::info!(machine = self.name, "the master ended"),
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(machine = self.name, %error, "the master failed");
                }
            }
            tokio::time::sleep(self.scale.stretch(RESTART_PAUSE)).await;
        }
    }

    /// Sends an order to the running master; returns false if none runs.
    pub fn order(&self, order: Order) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().is_some_and(|orders| orders.try_send(order).is_ok())
    }

    /// Returns at how many consecutive starts the master did not come up.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    async fn once(&self) -> Result<(), master_node::Error> {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let env = Env {
            clock: self.clock.clone(),
            random: Arc::new(SimRandom::new(
                self.workload.seed,
                (u64::from(self.node.number()) << 32) | start,
            )),
            network: Arc::new(SimNetwork::of_process(self.sockets.requests())),
            disk: Arc::new(self.disk.clone()),
            blocking: Blocking::Inline,
            shutdown: CancellationToken::new(),
        };
        let objects = Objects::In(Arc::new(self.home.clone()));
        let master = master_node::build(self.config(), env, objects).await?;
        let consensus: Arc<Consensus> = master.consensus().clone();
        self.failures.store(0, Ordering::Relaxed);
        self.workload.observer.attach(self.node, &consensus, self.scale.stretch(fence::EVERY));
        let (sender, receiver) = mpsc::channel(ORDERS_MAX);
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        tokio::spawn(obey(consensus, receiver));
        master.run().await
    }

    fn config(&self) -> MasterConfig {
        let joins = self.node.number() != 1;
        let others = self.workload.masters().into_iter().filter(|ip| *ip != self.ip);
        let peers = others.map(|ip| format!("{ip}:{PEER_PORT}"));
        MasterConfig {
            name: self.name.clone(),
            data_dir: Path::new(DATA_DIR).to_owned(),
            advertise_address: self.ip,
            api_port: API_PORT,
            peer_port: PEER_PORT,
            join: joins.then(|| peers.collect()),
            token: joins.then(|| token().to_string()),
            timers: self.scale.timers(),
            snapshot_count: self.snapshot_count,
            ..MasterConfig::default()
        }
    }
}

async fn obey(consensus: Arc<Consensus>, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        let obeyed = match order {
            Order::TransferLeader(to) => consensus.transfer_leader(to, ORDER_TIMEOUT).await,
            Order::Remove(ref ids) => remove(&consensus, ids).await,
        };
        tracing::info!(?order, ?obeyed, "an order");
    }
}

/// Removes all at once, since two voters may go where one may not; if that is refused, one after the other.
async fn remove(consensus: &Consensus, ids: &[NodeId]) -> Result<(), ChangeError> {
    let mut result = consensus.remove_masters(ids, ORDER_TIMEOUT).await;
    if result.is_err() && ids.len() > 1 {
        for id in ids {
            result = consensus.remove_master(*id, ORDER_TIMEOUT).await;
        }
    }
    result
}

/// Returns the IP address of master number `number`.
fn address(number: u32) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(number).unwrap_or(u8::MAX)])
}

/// Returns the master whose machine has this address; `None` for other addresses.
pub fn master_at(ip: IpAddr) -> Option<NodeName> {
    match ip {
        IpAddr::V4(ip) if ip.octets()[..3] == [10, 0, 0] => NodeName::master(ip.octets()[3].into()),
        _ => None,
    }
}

/// Returns the fixed token that masters join with; the bootstrap client stores it.
pub fn token() -> JoinToken {
    JoinToken { ca_hash: [0; 32], id: "simula".to_owned(), secret: "0123456789abcdef".to_owned() }
}

fn keys() -> Result<ClusterKeys> {
    let certificate = include_str!("../fixtures/ca.crt").to_owned();
    let authority = Authority::load(certificate, include_str!("../fixtures/ca.key").to_owned());
    Ok(ClusterKeys {
        authority: authority.context("the CA of the simulation")?,
        service_account_key_pem: include_str!("../fixtures/sa.key").to_owned(),
        data_key: [7; 32].into(),
    })
}
