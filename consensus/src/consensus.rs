//! The handle every other room holds: starts and stops a member and its tasks.
//! What it can do lies in `propose.rs`, `read.rs`, `membership.rs`, `status.rs`
//! and `service.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
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
use crate::elections::{self, Elections};
use crate::fence::{self, Fences};
use crate::leadership;
use crate::log_store::LogStore;
use crate::network::Peers;
use crate::network::client::Factory;
use crate::propose::Proposals;
use crate::raft_types::{MasterAddress, Raft};
use crate::read::{self, ReadQueue};
use crate::rebuild::Defence;
use crate::state_machine::{StateMachine, decode_applied};
use crate::sync_delay::SyncDelay;
use crate::types::{Leadership, NodeId};
use crate::{Error, compare, discovery, disk_space, membership, recovery};

/// The id of the master that initializes a cluster. Others get theirs from the
/// log, whose indexes for that begin later.
pub const FIRST_NODE_ID: NodeId = 1;
/// The log is purged by whole segments: its size on disk is bounded to a quarter.
const LOG_SEGMENTS: u64 = 4;
/// Threads of the runtime of openraft: one may wait for the store while the other goes on.
const RAFT_THREADS: usize = 2;

/// A member of the cluster.
pub struct Consensus {
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) info: MasterAddress,
    /// The lease of a leader.
    pub(crate) lease: Duration,
    /// Bytes of the log above which it is purged early.
    pub(crate) log_bytes: u64,
    pub(crate) env: Env,
    /// Where openraft, its connections and what must not wait for others runs.
    pub(crate) runtime: Arc<PriorityRuntime>,
    pub(crate) raft: Raft,
    pub(crate) store: Arc<Store>,
    pub(crate) log: Arc<Log>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) proposals: Proposals,
    pub(crate) readers: ReadQueue,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) applied_index: watch::Receiver<u64>,
    pub(crate) elections: Elections,
    pub(crate) defence: Defence,
    /// Not empty once this member has failed.
    pub(crate) failure: watch::Sender<String>,
    /// Held while the membership changes.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) stop: CancellationToken,
    pub(crate) data_dir: PathBuf,
    /// Addresses where others may be.
    pub(crate) hints: Vec<String>,
    pub(crate) fences: Fences,
    pub(crate) autopilot: Autopilot,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Consensus {
    /// Starts a member on its data directory. It follows whoever leads; the
    /// first member of a new cluster calls [`Consensus::initialize`] once.
    /// Serve [`Consensus::raft_service`] on the peer port right after.
    pub async fn start(config: ConsensusConfig, env: Env) -> Result<Arc<Self>, Error> {
        let identity = MemberIdentity { node_id: config.node_id, cluster_id: config.cluster_id.clone() };
        identity.check(&config, env.disk.as_ref())?;
        fence::check_not_out(&config.data_dir, env.disk.as_ref())?;
        recovery::check_none_begun(&config.data_dir, env.disk.as_ref())?;
        let fences = Fences::load(&config.data_dir, env.disk.as_ref())?;
        let (store, log) = open(&config, &env).await?;
        check_order(&config, &store, &log)?;
        check_members(&store, &config.data_dir)?;
        // Once log and objects are there: from now on they must be.
        identity.claim(&config.data_dir, env.disk.as_ref())?;
        let durable = Arc::new(AtomicU64::new(0));
        let state_machine = StateMachine::new(store.clone(), durable.clone(), env.blocking)?;
        let applied_index = state_machine.applied_index();
        let defence = Defence::new(state_machine.shared(), durable.clone());
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
        let (readers, reading) = read::queue();
        let this = Arc::new(Self {
            node_id: config.node_id,
            cluster_id: config.cluster_id,
            info: config.address,
            lease: config.election_max,
            log_bytes: config.log_bytes,
            stop: stop.clone(),
            env,
            runtime,
            raft,
            store,
            log,
            peers,
            proposals,
            readers,
            leadership: watch::Sender::new(Leadership::default()),
            applied_index,
            elections,
            defence,
            failure: watch::Sender::default(),
            changing: tokio::sync::Mutex::new(()),
            data_dir: config.data_dir,
            hints: config.peers,
            fences,
            autopilot: Autopilot::new(config.autopilot),
            tasks: tokio::sync::Mutex::new(JoinSet::new()),
        });
        let compacting = this.store.clone().compact_periodically();
        let mut tasks = this.tasks.lock().await;
        let runtime = &this.runtime;
        let again = |task, run: fn(Arc<Self>) -> BoxFuture<'static, ()>| {
            let this = this.clone();
            supervise(task, move || run(this.clone()))
        };
        runtime.spawn_in(&mut tasks, again("elections", |this| Box::pin(elections::run(this))));
        runtime.spawn_in(&mut tasks, again("leadership", |this| Box::pin(leadership::run(this))));
        runtime.spawn_in(&mut tasks, again("membership", |this| Box::pin(membership::run(this))));
        runtime.spawn_in(&mut tasks, again("discovery", |this| Box::pin(discovery::run(this))));
        runtime.spawn_in(&mut tasks, this.clone().or_give_up("reads", read::run(this.clone(), reading)));
        let proposing = until(stop.clone(), proposing);
        runtime.spawn_in(&mut tasks, this.clone().or_give_up("proposals", proposing));
        // These compute, or wait for the store.
        tasks.spawn(again("replica comparison", |this| Box::pin(compare::run(this))));
        tasks.spawn(disk_space::run(this.clone(), this.data_dir.clone(), config.disk_reserve));
        tasks.spawn(again("autopilot", |this| Box::pin(autopilot::run(this))));
        tasks.spawn(until(stop, compacting));
        drop(tasks);
        Ok(this)
    }

    /// Makes this master the only member of a new cluster. Does nothing when it
    /// is a member already.
    pub async fn initialize(&self) -> Result<(), Error> {
        let members = BTreeMap::from([(self.node_id, self.info.clone())]);
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Raft(error.to_string())),
        }
    }

    /// Where the peer port is to be listened on and served: what comes from other
    /// masters then waits for nothing that the main runtime does.
    pub fn runtime(&self) -> &PriorityRuntime {
        &self.runtime
    }

    /// The local replica.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// This master's id.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// The index of the last log entry applied here.
    pub fn applied_index(&self) -> u64 {
        *self.applied_index.borrow()
    }

    /// Waits until this member has failed for good (a sync that did not succeed,
    /// damaged files) and says why: the process should end then.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(|failure| !failure.is_empty()).await {
            Ok(reason) => reason.clone(),
            // Not before this member itself is gone.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops this member: nothing is proposed or applied any more, everything
    /// written is synced, and the data directory may be opened again.
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

    /// Runs a task that cannot be started again: when it panics, this member has failed for good.
    async fn or_give_up(self: Arc<Self>, task: &'static str, work: impl Future<Output = ()>) {
        if let Err(panicked) = catch(task, work).await {
            self.give_up(AlarmKind::StoreFailed, panicked.to_string()).await;
        }
    }

    /// The peer address of a member.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&node).map(|info| info.peer_address.clone())
    }
}

/// A master with entries but without members would follow for ever and never vote:
/// what it has is not all it had.
fn check_members(store: &Store, data_dir: &Path) -> Result<(), Error> {
    // The first entry of every log says who the members are.
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

/// Opens the object store and the log, which read their files.
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
    // sled panics on some damage.
    let opened = opened.await.map_err(|error| damaged(&error))?;
    opened.map_err(|error| if error.is_damage() { damaged(&error) } else { error.into() })
}

/// The log must begin where the objects end, or before: what is missing between
/// them cannot be replayed.
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
