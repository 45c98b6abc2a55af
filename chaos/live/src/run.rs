//! One run of an experiment on a live cluster: looks at the cluster, lets clients work while faults are
//! injected, heals everything, and judges. `ephor chaos run --live` calls it.
//!
//! Phases: look -> chaos -> heal (the cluster must come back by itself) -> drain -> judge

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos_oracle::history::History;
use chaos_oracle::{Violation, linearizable, malformed};
use chaos_spec::fault::{Fault, Member as MemberFault};
use chaos_spec::{Experiment, Invariant, Reason, Report};
use http::{Method, StatusCode};
use proto_wire::cluster::StatusRequest;
use proto_wire::token::JoinToken;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Error, within};
use crate::cluster::{Agents, Cluster};
use crate::http::{Client, client};
use crate::inject::{Injector, Progress};
use crate::members::{delete_token, store_token};
use crate::observer::{Observer, reached};
use crate::poll;
use crate::report::{self, Seen};
use crate::watcher::{Truth, witness_of};
use crate::workload::{Workload, generator, list_at};

/// Maximum time until the cluster is whole before the run begins.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);
/// Number of writes that must be acknowledged after the last fault before the cluster counts as serving.
const HEALED_WRITES: usize = 20;
/// Time for the last calls to end, longer than any call of a client.
const DRAIN: Duration = Duration::from_secs(10);
/// Maximum time for the last lists, and until all watches have delivered what is in them.
const LAST_LOOK: Duration = Duration::from_secs(20);
/// Interval at which due faults are looked for.
const TICK: Duration = Duration::from_millis(20);
/// Number of ticks between two checks whether an acknowledged write is missing.
const LOST_TICKS: u32 = 50;
/// Maximum time of the comparison of the replicas.
const COMPARE_WITHIN: Duration = Duration::from_secs(20);
/// First number of the clients that list everything at the end.
const LAST_CLIENT: usize = 20_000;

/// Options of a run.
pub struct Options {
    /// The experiment to run.
    pub experiment: Experiment,
    /// Seed that decides everything the experiment leaves open.
    pub seed: u64,
    /// Peer addresses of masters, as `HOST:PORT`.
    pub peers: Vec<String>,
    /// Default port of agents.
    pub agent_port: u16,
    /// Addresses of agents at other places.
    pub agents: Agents,
    /// Callback for progress messages.
    pub progress: Progress,
}

struct Run {
    options: Options,
    access: Access,
    observer: Observer,
    workload: Workload,
    injector: Injector,
    truth: Truth,
    /// Clients that each watch one master.
    witnesses: BTreeSet<usize>,
    /// Revision at which none of the clients' objects existed yet.
    origin_revision: u64,
    /// Moment at which the schedule began.
    origin: Duration,
    stop: CancellationToken,
    others: Vec<Reason>,
    notes: Vec<String>,
}

/// Runs the experiment; returns the report, which has what went wrong, and the history it was judged by.
/// Cancelling `stop` ends the run early, with all faults undone.
///
/// # Errors
/// Fails if the run cannot begin: the cluster does not answer, is not the one the experiment needs, is not
/// whole, or has faults already.
pub async fn run(
    options: Options,
    access: Access,
    stop: CancellationToken,
) -> Result<(Report, History), Error> {
    let cluster =
        Cluster::discover(access.clone(), &options.peers, options.agent_port, &options.agents).await?;
    fits(&options.experiment, &cluster)?;
    unhurt(&cluster).await?;
    let observer = Observer::new();
    let asking = CancellationToken::new();
    let _ends_polls = asking.clone().drop_guard();
    let members = first_members(&access, &cluster).await?;
    tokio::spawn(poll::run(access.clone(), observer.clone(), members, asking));
    whole(&observer, &cluster).await?;

    let namespace = format!("ephor-chaos-{:08x}", options.seed & 0xffff_ffff);
    let api = cluster.apis()[0];
    let mut client = client(&access, api);
    let origin_revision = create_namespace(&mut client, &namespace).await?;
    let token = token(&options, &access, &mut client).await?;
    let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
    let load = &options.experiment.spec.workload;
    let workload =
        Workload::new(access.clone(), observer.clone(), load, &collection, options.seed, cluster.apis());
    let progress = options.progress.clone();
    let injector = Injector::new(&options.experiment, cluster, workload.clone(), token.clone(), progress);
    let (origin, truth) = (observer.elapsed(), Truth::default());
    let (others, notes) = Default::default();
    let mut run = Run {
        options,
        access,
        observer,
        workload,
        injector,
        truth,
        witnesses: BTreeSet::new(),
        origin_revision,
        origin,
        stop,
        others,
        notes,
    };
    let outcome = run.chaos().await;
    run.clean(&namespace, token.as_ref()).await;
    Ok(outcome)
}

impl Run {
    async fn chaos(&mut self) -> (Report, History) {
        let watching = CancellationToken::new();
        let mut watchers = self.watch(&watching);
        self.origin = self.observer.elapsed();
        let mut clients = self.workload.start();
        self.break_things().await;
        self.heal().await;
        self.workload.ended.cancel();
        let ended = self.observer.elapsed();
        let drained =
            tokio::time::timeout(DRAIN, async { while clients.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            self.notes.push("some calls had not ended when the history was taken".to_owned());
        }
        let known = self.last_look().await;
        watching.cancel();
        while watchers.join_next().await.is_some() {}
        self.compare_replicas().await;
        self.judge(known, ended).await
    }

    fn watch(&mut self, watching: &CancellationToken) -> JoinSet<()> {
        let mut watchers = JoinSet::new();
        for master in self.injector.cluster.masters.values() {
            let (workload, truth) = (self.workload.clone(), self.truth.clone());
            let (id, at, origin) = (master.id, master.api, self.origin_revision);
            self.witnesses.extend(witness_of(id));
            watchers.spawn(workload.witness(id, at, origin, truth, watching.clone()));
        }
        for number in 0..self.workload.watchers() {
            watchers.spawn(self.workload.clone().roam(number, watching.clone()));
        }
        watchers
    }

    fn now(&self) -> Duration {
        self.observer.elapsed().saturating_sub(self.origin)
    }

    fn look(&self) -> bool {
        let now = self.observer.elapsed();
        let names = self.injector.cluster.names();
        let whole = self.observer.views(|views| views.is_whole(&names, now));
        self.observer.whole(whole);
        whole
    }

    /// Carries out the schedule until it is over or the run must be aborted.
    async fn break_things(&mut self) {
        let duration = self.options.experiment.spec.duration;
        let mut ticks = 0_u32;
        while self.now() < duration {
            tokio::time::sleep(TICK).await;
            self.look();
            self.injector.step(self.now().min(duration)).await;
            ticks += 1;
            if let Some(why) = self.aborts(ticks.is_multiple_of(LOST_TICKS)) {
                (self.options.progress)(&format!("giving up: {why}"));
                self.others.push(Reason::Aborted(why));
                return;
            }
        }
    }

    /// Returns the reason to abort the run; `None` to go on.
    fn aborts(&self, look_for_lost: bool) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("it was interrupted".to_owned());
        }
        let abort = &self.options.experiment.spec.abort_if;
        let (_, last) = self.observer.acknowledged();
        let silent = self.observer.elapsed().saturating_sub(last.max(self.origin));
        if let Some(limit) = abort.unavailable_for.filter(|limit| silent > *limit) {
            return Some(format!("no write was acknowledged for {limit:?}"));
        }
        let limit = abort.lost_writes.filter(|_| look_for_lost)?;
        let lost = self.observer.lost(reached(self.origin_revision, &self.truth.covered()));
        (lost >= limit).then(|| format!("{lost} acknowledged writes are lost"))
    }

    /// Ends all faults and waits until the cluster is whole and serves again.
    async fn heal(&mut self) {
        (self.options.progress)("everything is undone");
        let limit = self.options.experiment.spec.recover_within;
        self.injector.heal(self.now(), limit).await;
        let (before, _) = self.observer.acknowledged();
        let end = tokio::time::Instant::now() + limit;
        loop {
            let written = self.observer.acknowledged().0 - before;
            if self.look() && written >= HEALED_WRITES {
                return;
            }
            if tokio::time::Instant::now() >= end {
                let words = self.observer.views(|views| views.words(self.observer.elapsed()));
                let what = format!("{limit:?} after the last fault: {written} writes acknowledged; {words}");
                return self.observer.violation("heals", what);
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Lists everything at every master, and waits until the truth is known up to these lists and every
    /// master's own watch has reached them. Returns whether the truth is known.
    async fn last_look(&mut self) -> bool {
        let end = tokio::time::Instant::now() + LAST_LOOK;
        let mut revisions = Vec::new();
        for master in self.injector.cluster.masters.values() {
            let number = LAST_CLIENT + usize::try_from(master.id).unwrap_or(0);
            match list_at(&self.workload, master.api, number, end - tokio::time::Instant::now()).await {
                Some(revision) => revisions.push(revision),
                None => self.notes.push(format!("{} did not list the objects in the end", master.name)),
            }
        }
        let Some(last) = revisions.into_iter().max() else { return false };
        let witnesses = self.injector.cluster.masters.values().filter_map(|master| witness_of(master.id));
        // Masters that joined during the run have no witness.
        let witnesses = witnesses.filter(|client| self.witnesses.contains(client));
        self.observer.close(last, witnesses.collect());
        loop {
            let known = reached(self.origin_revision, &self.truth.covered()) >= last;
            if known && self.observer.is_closed() || tokio::time::Instant::now() >= end {
                return known;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Asks the leader to compare all replicas at one revision (`ephor status --digest`).
    async fn compare_replicas(&mut self) {
        let end = tokio::time::Instant::now() + COMPARE_WITHIN;
        let mut why = String::new();
        while tokio::time::Instant::now() < end {
            match self.digests().await {
                Ok(digests) => {
                    let different: BTreeSet<&(u64, Vec<u8>)> =
                        digests.iter().map(|(_, digest)| digest).collect();
                    if different.len() > 1 {
                        let what = digests.iter().map(|(name, (revision, digest))| {
                            let hex: String =
                                digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                            format!("{name} has {hex} at {revision}")
                        });
                        let what = what.collect::<Vec<_>>().join(", ");
                        self.observer.violation("replicas-identical", what);
                    }
                    return;
                }
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.others.push(Reason::Undecided { invariant: Invariant::ReplicasIdentical, why });
    }

    async fn digests(&self) -> Result<Vec<(String, (u64, Vec<u8>))>, Error> {
        let now = self.observer.elapsed();
        let (leader, members) = self.observer.views(|views| (views.leader(now), views.members(now)));
        let leader = members.iter().find(|member| Some(member.id) == leader);
        let leader = leader.ok_or_else(|| Error::Node("nobody leads".to_owned()))?;
        let mut admin = self.access.admin(&leader.peer_address)?;
        let request = StatusRequest { revision: 0, digest: true, local: false };
        let answer = within(COMPARE_WITHIN / 2, admin.status(request)).await?;
        let digest = |master: proto_wire::cluster::MasterStatus| {
            let name = master.member.map(|member| member.name).unwrap_or_default();
            if master.error.is_empty() {
                Ok((name, (master.revision, master.digest)))
            } else {
                Err(Error::Node(format!("{name}: {}", master.error)))
            }
        };
        answer.masters.into_iter().map(digest).collect()
    }

    async fn judge(&mut self, known: bool, ended: Duration) -> (Report, History) {
        let (history, seen) = self.observer.take();
        (self.options.progress)(&format!("judging {} operations", history.operations.len()));
        let experiment = &self.options.experiment;
        if !known {
            // If some changes are unknown, these checks would report violations that are none.
            let by_truth =
                [Invariant::AcknowledgedWritesKept, Invariant::NoPhantoms, Invariant::WatchesExact];
            let why = "no set of masters' watches told of all changes without a gap".to_owned();
            let asked = by_truth.into_iter().filter(|it| experiment.spec.invariants.contains(it));
            self.others.extend(asked.map(|invariant| Reason::Undecided { invariant, why: why.clone() }));
        }
        let judged = tokio::task::spawn_blocking(move || {
            let found: Vec<Violation> = if known {
                chaos_oracle::check(&history)
            } else {
                malformed::check(&history).into_iter().chain(linearizable::check(&history)).collect()
            };
            (found, history)
        });
        let (found, history) = match judged.await {
            Ok(judged) => judged,
            Err(error) => {
                let invariant = Invariant::Linearizable;
                self.others.push(Reason::Undecided { invariant, why: format!("the oracle failed: {error}") });
                Default::default()
            }
        };
        self.notes.push(
            "minority-silent is judged by acknowledged-writes-kept and linearizable: what a minority acknowledged \
             is in no other history"
                .to_owned(),
        );
        let seen = Seen {
            history,
            violations: seen.into_iter().chain(found).collect(),
            others: self.others.clone(),
            leaders: self.observer.leaders(),
            terms: self.observer.views(|views| views.terms().to_vec()),
            wholeness: self.observer.wholeness(),
            origin: self.origin,
            ended,
            notes: self.notes.clone(),
        };
        report::build(&self.options.experiment, self.options.seed, self.injector.records(), seen)
    }

    /// Deletes what the run created in the cluster, as far as the cluster answers.
    async fn clean(&mut self, namespace: &str, token: Option<&JoinToken>) {
        for master in self.injector.cluster.masters.values() {
            let mut client = client(&self.access, master.api);
            let path = format!("/api/v1/namespaces/{namespace}");
            let deleted = client.ask(Method::DELETE, &path, None).await;
            let gone = deleted.is_ok_and(|a| a.status.is_success() || a.status == StatusCode::NOT_FOUND);
            let revoked = match token {
                Some(token) => delete_token(&mut client, token).await,
                None => true,
            };
            if gone && revoked {
                return;
            }
        }
        (self.options.progress)(&format!("namespace {namespace} was not deleted: no master answered"));
    }
}

/// Checks that the cluster is as large as the experiment needs.
fn fits(experiment: &Experiment, cluster: &Cluster) -> Result<(), Error> {
    let wanted = experiment.spec.cluster;
    let counts = [
        ("masters", wanted.masters as usize, cluster.masters.len(), true),
        ("workers", wanted.workers as usize, cluster.workers.len(), false),
    ];
    for (what, wanted, there, exactly) in counts {
        if there < wanted || (exactly && there != wanted) {
            let text = format!("the experiment needs {wanted} {what}, the cluster has {there}");
            return Err(Error::Node(text));
        }
    }
    Ok(())
}

/// Checks that no agent holds a fault of an earlier run. An agent that does not answer is noticed when it is
/// needed.
async fn unhurt(cluster: &Cluster) -> Result<(), Error> {
    for (node, agent) in &cluster.agents {
        if let Ok(described) = agent.describe().await
            && let Some(fault) = described.faults.first()
        {
            let text = format!("{node} still has fault {}; hint: `ephor chaos recover`", fault.id);
            return Err(Error::Node(text));
        }
    }
    Ok(())
}

async fn first_members(
    access: &Access,
    cluster: &Cluster,
) -> Result<Vec<proto_wire::cluster::Member>, Error> {
    let mut last = Error::Node("no master answers".to_owned());
    for master in cluster.masters.values() {
        let mut admin = access.admin(&master.peer)?;
        match within(DRAIN, admin.members(proto_wire::cluster::MembersRequest { local: true })).await {
            Ok(answer) => return Ok(answer.members),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn whole(observer: &Observer, cluster: &Cluster) -> Result<(), Error> {
    let end = tokio::time::Instant::now() + WHOLE_WITHIN;
    let names = cluster.names();
    while !observer.views(|views| views.is_whole(&names, observer.elapsed())) {
        if tokio::time::Instant::now() >= end {
            let words = observer.views(|views| views.words(observer.elapsed()));
            return Err(Error::Node(format!("the cluster is not whole before the run: {words}")));
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// Creates the clients' namespace; returns the revision at which none of their objects exists yet.
async fn create_namespace(client: &mut Client, name: &str) -> Result<u64, Error> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let failed = |what: String| Error::Node(format!("namespace {name}: {what}"));
    let end = tokio::time::Instant::now() + WHOLE_WITHIN;
    let mut tries = 0_u32;
    loop {
        let made = client.ask(Method::POST, "/api/v1/namespaces", Some(&object)).await;
        // A first attempt without an answer may have created it.
        let exists = |status: StatusCode| status == StatusCode::CONFLICT && tries > 0;
        let why = match made {
            Ok(answer) if answer.status.is_success() || exists(answer.status) => break,
            Ok(answer) if answer.status.is_client_error() => {
                return Err(failed(answer.body["message"].as_str().unwrap_or("refused").to_owned()));
            }
            Ok(answer) => answer.status.to_string(),
            Err(failure) => format!("{failure:?}"),
        };
        if tokio::time::Instant::now() >= end {
            return Err(failed(why));
        }
        tries += 1;
        tokio::time::sleep(TICK).await;
    }
    let path = format!("/api/v1/namespaces/{name}/configmaps");
    let list =
        client.ask(Method::GET, &path, None).await.map_err(|failure| failed(format!("{failure:?}")))?;
    let revision = list.body["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    revision.ok_or_else(|| failed("the list has no revision".to_owned()))
}

/// Creates a join token if the experiment adds masters; `None` if it does not.
async fn token(options: &Options, access: &Access, client: &mut Client) -> Result<Option<JoinToken>, Error> {
    let joins = |fault: &Fault| matches!(fault, Fault::Member(MemberFault::Add(_) | MemberFault::Replace(_)));
    if !options.experiment.spec.schedule.iter().any(|entry| joins(&entry.fault)) {
        return Ok(None);
    }
    let mut random = generator(options.seed, 3);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = UNIX_EPOCH + now + Duration::from_secs(3600);
    let expires = humantime::format_rfc3339_seconds(expires).to_string();
    store_token(access, client, &mut random, &expires).await.map(Some)
}
