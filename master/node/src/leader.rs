//! Starts the leader's tasks when this master begins to lead, and stops them when it
//! no longer does. Every task gets a client whose writes are fenced to the term, so
//! that a task that outlives the term writes nothing.

use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use master_apiserver::{ApiServer, UserInfo};
use master_client::Informers;
use proto_env::Env;
use proto_env::supervise::supervise;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::autopilot;
use crate::backup::{self, BackupSource};
use crate::config::Timers;
use crate::health;
use crate::liveness::{self, Liveness};
use crate::witnesses::OtherMasters;

/// Everything the tasks of a leader need.
pub struct Leader {
    /// Tells who leads.
    pub consensus: Arc<Consensus>,
    /// Provides clients of this master's own API.
    pub api: ApiServer,
    /// The shared caches, already filled.
    pub informers: Informers,
    /// The beats of nodes.
    pub liveness: Arc<Liveness>,
    /// Configuration of the controllers.
    pub controllers: master_controllers::Config,
    /// Publishes the addresses of the masters that answer to the controllers.
    pub healthy: watch::Sender<Vec<std::net::SocketAddr>>,
    /// Makes the entries of scheduled backups.
    pub backups: Arc<BackupSource>,
    /// The timers that decide how fast silence is noticed.
    pub timers: Timers,
    /// How long events are kept; `None`: for ever.
    pub event_ttl: Option<Duration>,
    /// Provides clock and shutdown.
    pub env: Env,
}

/// A term in which this master leads, with its tasks.
struct Term {
    number: u64,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Leader {
    /// Starts and stops the tasks as leadership changes, until shutdown.
    pub async fn run(self) {
        let mut leadership = self.consensus.leadership();
        let mut term: Option<Term> = None;
        loop {
            let now = *leadership.borrow_and_update();
            let same = term.as_ref().is_some_and(|t| now.leading && t.number == now.term);
            if !same && let Some(ended) = term.take() {
                ended.end().await;
            }
            if now.leading && term.is_none() {
                term = Some(self.begin(now.term));
            }
            tokio::select! {
                biased;
                () = self.env.shutdown.cancelled() => break,
                changed = leadership.changed() => if changed.is_err() { break },
            }
        }
        if let Some(ended) = term {
            ended.end().await;
        }
    }

    fn begin(&self, number: u64) -> Term {
        tracing::info!(term = number, "this master leads");
        let cancel = self.env.shutdown.child_token();
        let mut tasks = JoinSet::new();
        let client = |name: &str, groups: &[&str]| {
            self.api.local_client(UserInfo::authenticated(name, groups), Some(number))
        };
        let manager = client("system:kube-controller-manager", &[]);
        let (api, informers, config) = (manager.clone(), self.informers.clone(), self.controllers.clone());
        tasks.spawn(during(&cancel, "controllers", move |cancel| {
            master_controllers::run(api.clone(), informers.clone(), config.clone(), cancel)
        }));
        let (api, informers) = (client("system:kube-scheduler", &[]), self.informers.clone());
        let config = master_scheduler::Config { clock: self.env.clock.clone() };
        tasks.spawn(during(&cancel, "scheduler", move |cancel| {
            master_scheduler::run(api.clone(), informers.clone(), config.clone(), cancel)
        }));
        let others = OtherMasters { consensus: self.consensus.clone(), network: self.env.network.clone() };
        let watch = Arc::new(liveness::NodeWatch {
            liveness: self.liveness.clone(),
            client: manager.clone(),
            informers: self.informers.clone(),
            witnesses: Arc::new(others),
            grace: self.timers.node_grace(),
        });
        tasks.spawn(during(&cancel, "node-liveness", move |cancel| {
            let watch = watch.clone();
            async move { liveness::watch_nodes(&watch, cancel).await }
        }));
        let (consensus, network) = (self.consensus.clone(), self.env.network.clone());
        let (healthy, interval) = (self.healthy.clone(), self.timers.health_interval());
        tasks.spawn(during(&cancel, "master-health", move |cancel| {
            health::watch_masters(consensus.clone(), network.clone(), healthy.clone(), interval, cancel)
        }));
        let (consensus, clock) = (self.consensus.clone(), self.env.clock.clone());
        tasks.spawn(during(&cancel, "autopilot-events", move |cancel| {
            autopilot::report(consensus.clone(), manager.clone(), clock.clone(), cancel)
        }));
        let (backups, api) = (self.backups.clone(), client("system:ephor:backup", &["system:masters"]));
        tasks.spawn(during(&cancel, "backup-schedule", move |cancel| {
            backup::schedule::run(backups.clone(), api.clone(), cancel)
        }));
        if let Some(ttl) = self.event_ttl {
            let api = self.api.clone();
            tasks.spawn(during(&cancel, "event-expiry", move |_| {
                let api = api.clone();
                async move { api.expire_events(number, ttl).await }
            }));
        }
        let api = self.api.clone();
        tasks.spawn(during(&cancel, "service-account-keys", move |_| {
            let api = api.clone();
            async move { api.rotate_service_account_keys(number).await }
        }));
        Term { number, cancel, tasks }
    }
}

/// Runs one task of a term: starts it again after a panic, and ends it with the term.
fn during<F>(
    cancel: &CancellationToken,
    name: &'static str,
    make: impl Fn(CancellationToken) -> F + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    F: Future<Output = ()> + Send + 'static,
{
    let cancel = cancel.clone();
    supervise(name, move || make(cancel.clone()))
}

impl Term {
    async fn end(mut self) {
        tracing::info!(term = self.number, "this master leads no longer");
        self.cancel.cancel();
        // The writes of these tasks are fenced, so aborting them loses nothing.
        self.tasks.shutdown().await;
    }
}
