//! Starts what leads when this master begins to lead, and stops it when it ends.
//! Everything started here gets a client whose writes carry the term, so that
//! what is still running after the term writes nothing.

use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use master_apiserver::{ApiServer, UserInfo};
use master_client::Informers;
use proto_env::Env;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::autopilot;
use crate::backup::{self, Source};
use crate::config::Timers;
use crate::health;
use crate::liveness::{self, Liveness};

/// What a leader needs.
pub struct Leader {
    /// Who leads.
    pub consensus: Arc<Consensus>,
    /// Where clients come from.
    pub api: ApiServer,
    /// Warm caches.
    pub informers: Informers,
    /// Beats of nodes.
    pub liveness: Arc<Liveness>,
    /// What the controllers are told.
    pub controllers: master_controllers::Config,
    /// Published to the controllers: the masters that answer.
    pub healthy: watch::Sender<Vec<std::net::SocketAddr>>,
    /// What scheduled backups are made from.
    pub backups: Arc<Source>,
    /// How fast silence is noticed.
    pub timers: Timers,
    /// How long events are kept; `None`: for ever.
    pub event_ttl: Option<Duration>,
    /// Clock and shutdown.
    pub env: Env,
}

/// One term of this master.
struct Term {
    number: u64,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Leader {
    /// Follows leadership until shutdown.
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
        tasks.spawn(master_controllers::run(
            client("system:kube-controller-manager", &[]),
            self.informers.clone(),
            self.controllers.clone(),
            cancel.clone(),
        ));
        tasks.spawn(master_scheduler::run(
            client("system:kube-scheduler", &[]),
            self.informers.clone(),
            master_scheduler::Config { clock: self.env.clock.clone() },
            cancel.clone(),
        ));
        tasks.spawn(liveness::watch_nodes(
            self.liveness.clone(),
            client("system:kube-controller-manager", &[]),
            self.informers.clone(),
            self.timers.node_grace(),
            cancel.clone(),
        ));
        tasks.spawn(health::watch_masters(
            self.consensus.clone(),
            self.env.network.clone(),
            self.healthy.clone(),
            self.timers.health_interval(),
            cancel.clone(),
        ));
        tasks.spawn(autopilot::report(
            self.consensus.clone(),
            client("system:kube-controller-manager", &[]),
            self.env.clock.clone(),
            cancel.clone(),
        ));
        tasks.spawn(backup::schedule::run(
            self.backups.clone(),
            client("system:ephor:backup", &["system:masters"]),
            cancel.clone(),
        ));
        if let Some(ttl) = self.event_ttl {
            let api = self.api.clone();
            tasks.spawn(async move { api.expire_events(number, ttl).await });
        }
        Term { number, cancel, tasks }
    }
}

impl Term {
    async fn end(mut self) {
        tracing::info!(term = self.number, "this master leads no longer");
        self.cancel.cancel();
        // Their writes are fenced: nothing is lost by not waiting for them.
        self.tasks.shutdown().await;
    }
}
