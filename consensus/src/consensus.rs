//! The handle that other folders hold: starts and stops a member of the cluster and its tasks. Its other
//! operations are in `propose.rs`, `read.rs`, `membership_requests.rs`, `status.rs` and `service.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::errors::{InitializeError, RaftError};
use proto_env::supervise::{catch, supervise};
use proto_env::{Blocking, CancellationToken, Env, PriorityRuntime};
use storage::log::{self, Log};
use storage::{DataKey, Limits, Sealer, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::alarms::AlarmKind;
use crate::autopilot::{self, Autopilot};
use crate::config::{ConsensusConfig, LOG_DIRECTORY, MemberIdentity, OBJECTS_DIRECTORY, Objects};
use crate::defence::Defence;
use crate::elections::{self, Elections};
use crate::fence::{self, Fences};
use crate::leadership;
use crate::log_store::LogStore;
use crate::membership::Membership;
use crate::network::Peers;
use crate::network::client::Factory;
use crate::propose::Proposals;
use crate::raft_types::{MasterAddress, Raft};
use crate::read::Reads;
use crate::state_machine::{StateMachine, decode_applied};
use crate::sync_delay::SyncDelay;
use crate::types::{Leadership, NodeId};
use crate::{Error, compare, discovery, disk_space, disk_stall, membership_requests, recovery};

/// The id of the master that initializes a cluster. Other masters' ids are indexes of log entries, which
/// are always higher.
pub const FIRST_NODE_ID: NodeId = 1;
/// Number of segments in the maximum size of the log. Only whole segments are purged, so the size on disk
/// may exceed the bound by a quarter.
const LOG_SEGMENTS: u64 = 4;
/// Number of threads of openraft's runtime: one may wait for the store while the other runs.
const RAFT_THREADS: usize = 2;

/// A member of the cluster.
pub struct Consensus {
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) info: MasterAddress,
    /// The lease of a leader: the greatest election timeout.
    pub(crate) lease: Duration,
    /// Size of the log in bytes above which it is purged early.
    pub(crate) log_bytes: u64,
    /// Number of entries after which a snapshot is taken and the log purged.
    pub(crate) snapshot_count: u64,
    pub(crate) env: Env,
    /// The runtime of openraft, its connections and other tasks that must not be delayed.
    pub(crate) runtime: Arc<PriorityRuntime>,
    pub(crate) raft: Raft,
    pub(crate) store: Arc<Store>,
    pub(crate) log: Arc<Log>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    pub(crate) membership: Membership,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) applied_index: watch::Receiver<u64>,
    pub(crate) elections: Elections,
    pub(crate) defence: Arc<Defence>,
    pub(crate) stop: CancellationToken,
    pub(crate) data_dir: PathBuf,
    /// Addresses at which other masters may be, beside those of the membership.
    pub(crate) hints: Vec<String>,
    pub(crate) fences: Fences,
    pub(crate) autopilot: Arc<Autopilot>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Consensus {
    /// Starts a member on its data directory. It follows the leader; the first member of a new cluster
    /// calls [`Consensus::initialize`] once. The caller serves [`Consensus::raft_service`] on the peer port
    /// right after.
    pub async fn start(config: ConsensusConfig, env: Env) -> Result<Arc<Self>, Error> {
        let identity = MemberIdentity { node_id: config.node_id, cluster_id: config.cluster_id.clone() };
        identity.check(&config, env.disk.as_ref())?;
        fence::check_not_out(&config.data_dir, env.disk.as_ref())?;
        recovery::check_none_begun(&config.data_dir, env.disk.as_ref())?;
        let fences = Fences::load(&config.data_dir, env.disk.as_ref())?;
        let (store, log) = open(&config, &env).await?;
        check_order(&config, &store, &log)?;
        check_members(&store, &config.data_dir)?;
        // Written only once log and objects exist: from now on they must.
        identity.claim(&config.data_dir, env.disk.as_ref())?;
        let durable = Arc::new(AtomicU64::new(0));
        let state_machine = StateMachine::new(store.clone(), durable.clone(), env.blocking)?;
        let applied_index = state_machine.applied_index();
        let shared = state_machine.shared();
        let defence = Defence::new(env.clock.clone(), config.disk_reserve.clone(), shared, durable.clone());
        let defence = Arc::new(defence);
        let log_store = LogStore::new(
            log.clone(),
            store.clone(),
            durable,
            env.blocking,
            SyncDelay::new(env.disk.clone()),
        );
        let runtime = PriorityRuntime::start(env.blocking, "raft", RAFT_THREADS);
        let runtime = Arc::new(runtime.map_err(|error| Error::Raft(error.to_string()))?);
        let peers = Peers::new(
            env.network.clone(),
            runtime.clone(),
            &config.cluster_id,
            config.node_id,
            &config.address.peer_address,
        )
        .map_err(Error::Config)?;
        let timers = config.timers();
        let elections = Elections::new(timers, log_store.sync_times(), env.random.as_ref());
        let factory = Factory { peers: peers.clone(), given_out: log_store.given_out() };
        let made = Raft::new(config.node_id, config.raft()?, factory, log_store, state_machine);
        let raft = runtime.run(made).await.map_err(|error| Error::Raft(error.to_string()))?;
        let raft = raft.map_err(|error| Error::Raft(error.to_string()))?;
        let stop = env.shutdown.child_token();
        let (proposals, proposing) =
            Proposals::new(raft.clone(), peers.clone(), runtime.clone(), stop.clone());
        let leadership = watch::Sender::new(Leadership::default());
        let (reads, reading) = Reads::new(
            config.node_id,
            raft.clone(),
            peers.clone(),
            leadership.subscribe(),
            applied_index.clone(),
            (defence.clone(), stop.clone()),
        );
        let autopilot = Arc::new(Autopilot::new(config.autopilot));
        let membership = Membership::new(
            config.node_id,
            config.election_max,
            raft.clone(),
            leadership.subscribe(),
            autopilot.clone(),
        );
        let this = Arc::new(Self {
            node_id: config.node_id,
            cluster_id: config.cluster_id,
            info: config.address,
            lease: config.election_max,
            log_bytes: config.log_bytes,
            snapshot_count: config.snapshot_count,
            stop,
            env,
            runtime,
            raft,
            store,
            log,
            peers,
            proposals,
            reads,
            membership,
            leadership,
            applied_index,
            elections,
            defence,
            data_dir: config.data_dir,
            hints: config.peers,
            fences,
            autopilot,
            tasks: tokio::sync::Mutex::new(JoinSet::new()),
        });
        this.spawn_tasks(reading, proposing).await;
        Ok(this)
    }

    /// Starts the tasks that run until this member stops. `reading` and `proposing` serve its queues.
    async fn spawn_tasks(
        self: &Arc<Self>,
        reading: impl Future<Output = ()> + Send + 'static,
        proposing: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut tasks = self.tasks.lock().await;
        let runtime = &self.runtime;
        let again = |task, run: fn(Arc<Self>) -> BoxFuture<'static, ()>| {
            let this = self.clone();
            supervise(task, move || run(this.clone()))
        };
        runtime.spawn_in(&mut tasks, again("elections", |this| Box::pin(elections::run(this))));
        runtime.spawn_in(&mut tasks, again("leadership", |this| Box::pin(leadership::run(this))));
        runtime.spawn_in(&mut tasks, again("membership", |this| Box::pin(membership_requests::run(this))));
        runtime.spawn_in(&mut tasks, again("discovery", |this| Box::pin(discovery::run(this))));
        // These tasks gather requests, and the more they gather the cheaper is each one. On the threads that
        // are preferred they would run once for every request while the processor is busy.
        tasks.spawn(self.clone().or_give_up("reads", reading));
        tasks.spawn(self.clone().or_give_up("proposals", until(self.stop.clone(), proposing)));
        // These tasks compute for long or wait for the store, so they run on the main runtime.
        tasks.spawn(again("replica comparison", |this| Box::pin(compare::run(this))));
        tasks.spawn(again("disk space", |this| Box::pin(disk_space::run(this))));
        tasks.spawn(again("disk stalls", |this| Box::pin(disk_stall::run(this))));
        tasks.spawn(again("autopilot", |this| Box::pin(autopilot::run(this))));
        let store = self.store.clone();
        let compacting = supervise("history compaction", move || store.clone().compact_periodically());
        tasks.spawn(until(self.stop.clone(), compacting));
        let log = self.log.clone();
        let dropping = supervise("the log's memory", move || log.clone().drop_old_payloads());
        tasks.spawn(until(self.stop.clone(), dropping));
    }

    /// Makes this master the only member of a new cluster. Does nothing if the cluster is initialized
    /// already.
    pub async fn initialize(&self) -> Result<(), Error> {
        let members = BTreeMap::from([(self.node_id, self.info.clone())]);
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Raft(error.to_string())),
        }
    }

    /// Returns the runtime on which to listen and serve the peer port, so that calls from other masters do
    /// not wait for anything on the main runtime.
    pub fn runtime(&self) -> &PriorityRuntime {
        &self.runtime
    }

    /// Returns the local replica.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns this master's id.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Returns the cluster's id.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Watches who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Returns the index of the last log entry applied here.
    pub fn applied_index(&self) -> u64 {
        *self.applied_index.borrow()
    }

    /// Waits until this member has failed for good (a failed sync, damaged files) and returns the reason:
    /// the process should then end.
    pub async fn failed(&self) -> String {
        self.defence.failed().await
    }

    /// Stops this member: nothing is proposed or applied any more, everything written is synced, and the
    /// data directory may be opened again.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "openraft did not stop cleanly");
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().await);
        while tasks.join_next().await.is_some() {}
        let (store, log) = (self.store.clone(), self.log.clone());
        let closed = self.env.blocking.run(move || {
            log.close();
            store.sync()
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last sync of the object store failed"),
            Err(error) => tracing::error!(%error, "closing the object store failed"),
        }
    }

    /// Runs a task that cannot be restarted: if it panics, this member has failed for good.
    async fn or_give_up(self: Arc<Self>, task: &'static str, work: impl Future<Output = ()>) {
        if let Err(panicked) = catch(task, work).await {
            self.give_up(AlarmKind::StoreFailed, panicked.to_string()).await;
        }
    }
}

/// Refuses a master with entries but without members: its data is incomplete, and it would follow for ever
/// and never vote.
fn check_members(store: &Store, data_dir: &Path) -> Result<(), Error> {
    // The first entry of every log names the members.
    let (last, members) = decode_applied(&store.applied())?;
    match last {
        Some(last) if members.membership().nodes().next().is_none() => Err(Error::Config(format!(
            "{} has applied {} log entries and knows no masters: it is not whole; remove it and join again",
            data_dir.display(),
            last.index
        ))),
        _ => Ok(()),
    }
}

/// Opens the object store and the log, which read their files and so block.
async fn open(config: &ConsensusConfig, env: &Env) -> Result<(Arc<Store>, Arc<Log>), Error> {
    let data_dir = config.data_dir.display().to_string();
    let damaged = |error: &dyn std::fmt::Display| Error::Damaged {
        error: error.to_string().lines().next().unwrap_or_default().to_owned(),
        data_dir: data_dir.clone(),
    };
    let (config, env) = (config.clone(), env.clone());
    let opened = env.blocking.run(move || {
        let key = DataKey::new(config.data_key);
        let store = match &config.objects {
            Objects::Sled => {
                Store::open(&config.data_dir.join(OBJECTS_DIRECTORY), &key, &env, Limits::default())?
            }
            Objects::In(home) => Store::open_home(home.clone(), Limits::default())?,
        };
        let sealer = Sealer::new(&key, "log", env.random.clone());
        let options = log::Options {
            inline: env.blocking == Blocking::Inline,
            segment_bytes: config.log_bytes / LOG_SEGMENTS,
        };
        let log = Log::open(&config.data_dir.join(LOG_DIRECTORY), sealer, env.disk.clone(), options)?;
        Ok::<_, storage::Error>((store, log))
    });
    // sled panics on some damage, which ends the blocking task with an error.
    let opened = opened.await.map_err(|error| damaged(&error))?;
    opened.map_err(|error| if error.is_damage() { damaged(&error) } else { error.into() })
}

/// Checks that the log begins where the objects end, or before: missing entries between them cannot be
/// replayed.
fn check_order(config: &ConsensusConfig, store: &Store, log: &Log) -> Result<(), Error> {
    let applied = store.checkpoint(u64::MAX).map_or(0, |checkpoint| checkpoint.index);
    match log.state().purged {
        Some((purged, _)) if purged > applied => Err(Error::Damaged {
            error: format!("the objects end at log entry {applied}, the log begins after {purged}"),
            data_dir: config.data_dir.display().to_string(),
        }),
        _ => Ok(()),
    }
}

pub(crate) async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
}
