//! Carries out the schedule of an experiment on a live cluster: each fault is split into one part per node at
//! its time, handed to the agents of these nodes, and undone at its end. A fault counts as fired when it took
//! effect: a process was killed, a packet dropped, a call of the disk failed. A fault that cannot be injected
//! counts as never fired, with the reason in its line, and makes the verdict unknown.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chaos_spec::experiment::Entry;
use chaos_spec::fault::{Fault, Member as MemberFault, Replace};
use chaos_spec::report::FaultRecord;
use chaos_spec::{Experiment, Group, NodeName, Target};
use futures::future::join_all;
use proto_wire::token::JoinToken;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::task::JoinSet;

use crate::access::Agent;
use crate::agent::LIMIT_MAX;
use crate::cluster::{Cluster, Master, master_of};
use crate::effect::Effect;
use crate::members::Changer;
use crate::parts;
use crate::workload::{Workload, generator};

/// Callback for progress messages, one line each.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// A part of a fault that was handed to an agent.
struct Placed {
    node: NodeName,
    id: String,
    /// Number of times the part took effect, as far as that was counted.
    fired: u64,
}

/// A fault under way.
struct Active {
    end: Duration,
    index: usize,
    placed: Vec<Placed>,
    /// Nodes whose process is down because of the fault.
    down: Vec<NodeName>,
}

/// Result of a change of members.
struct Changed {
    index: usize,
    added: Option<(NodeName, Master)>,
    removed: Option<NodeName>,
    failed: Option<String>,
}

/// Injects the faults of one run.
pub struct Injector {
    /// Nodes of the cluster.
    pub cluster: Cluster,
    /// Clients, which are told which masters there are.
    workload: Workload,
    changer: Changer,
    token: Option<JoinToken>,
    /// Prefix of the ids of all faults of this run.
    run: String,
    schedule: VecDeque<(usize, Entry)>,
    duration: Duration,
    random: StdRng,
    active: Vec<Active>,
    down: BTreeSet<NodeName>,
    /// Masters that left for good.
    gone: BTreeSet<NodeName>,
    changes: JoinSet<Changed>,
    records: Vec<FaultRecord>,
    progress: Progress,
}

impl Injector {
    /// Creates the injector of an experiment on a cluster. `token` is the token that new masters join with.
    pub fn new(
        experiment: &Experiment,
        cluster: Cluster,
        workload: Workload,
        token: Option<JoinToken>,
        progress: Progress,
    ) -> Self {
        let record = |entry: &Entry| FaultRecord {
            kind: entry.fault.kind(),
            what: entry.fault.to_string(),
            at: entry.at,
            ended: None,
            fired: 0,
            detect: None,
            elect: None,
            first_write: None,
            full_heal: None,
        };
        let schedule = &experiment.spec.schedule;
        Self {
            changer: Changer { access: cluster.access.clone(), observer: workload.observer.clone() },
            cluster,
            token,
            run: format!("r{:x}", workload.seed & 0xffff_ffff),
            records: schedule.iter().map(record).collect(),
            schedule: schedule.iter().cloned().enumerate().collect(),
            duration: experiment.spec.duration,
            random: generator(workload.seed, 2),
            workload,
            active: Vec::new(),
            down: BTreeSet::new(),
            gone: BTreeSet::new(),
            changes: JoinSet::new(),
            progress,
        }
    }

    /// Returns what became of each entry of the schedule.
    pub fn records(&self) -> Vec<FaultRecord> {
        self.records.clone()
    }

    /// Begins and ends the faults that are due at `now`, a time since the schedule began.
    pub async fn step(&mut self, now: Duration) {
        while let Some(Ok(changed)) = self.changes.try_join_next() {
            self.changed(changed, now).await;
        }
        self.end_due(now, now).await;
        while self.schedule.front().is_some_and(|(_, entry)| entry.at <= now) {
            let Some((index, entry)) = self.schedule.pop_front() else { return };
            self.records[index].at = now;
            match &entry.fault {
                Fault::Member(member) => self.change(index, member),
                _ => self.begin(index, &entry, now).await,
            }
        }
    }

    /// Ends every fault; waits at most `patience` for changes of members to end.
    pub async fn heal(&mut self, now: Duration, patience: Duration) {
        self.schedule.clear();
        self.end_due(Duration::MAX, now).await;
        let end = tokio::time::Instant::now() + patience;
        while let Ok(Some(changed)) = tokio::time::timeout_at(end, self.changes.join_next()).await {
            if let Ok(changed) = changed {
                self.changed(changed, now).await;
                // The process of a master that left is kept down, for the last time.
                self.end_due(Duration::MAX, now).await;
            }
        }
        self.changes.abort_all();
    }

    fn group(&mut self, with_down: bool) -> Group {
        let mut order: Vec<NodeName> = self.cluster.masters.keys().copied().collect();
        // A node that is down cannot be struck again, but it can be replaced.
        order.retain(|node| with_down || !self.down.contains(node));
        order.shuffle(&mut self.random);
        let observer = &self.workload.observer;
        let leader = observer.views(|views| views.leader(observer.elapsed()));
        let leader = leader.and_then(|id| self.cluster.node_of(id)).filter(|node| order.contains(node));
        Group::new(order, leader)
    }

    async fn begin(&mut self, index: usize, entry: &Entry, now: Duration) {
        let group = self.group(false);
        let mut workers: Vec<NodeName> = self.cluster.workers.keys().copied().collect();
        workers.retain(|node| !self.down.contains(node));
        workers.shuffle(&mut self.random);
        let seed = self.random.random();
        let parts = parts::of(&entry.fault, &group, &workers, seed, |node| self.cluster.address(node));
        let parts = match parts {
            Ok(parts) => parts,
            Err(why) => return self.never(index, &why),
        };
        let end = entry.end(self.duration);
        let limit = end.saturating_sub(now).clamp(Duration::from_millis(1), LIMIT_MAX);
        let place = |(node, effect): &(NodeName, Effect)| self.place(index, *node, effect.clone(), limit);
        let placed = join_all(parts.iter().map(place)).await;
        let mut failures = Vec::new();
        let mut active = Active { end, index, placed: Vec::new(), down: Vec::new() };
        for ((node, effect), outcome) in parts.iter().zip(placed) {
            let (placed, failed) = outcome;
            self.records[index].fired += placed.fired;
            active.placed.push(placed);
            match failed {
                Some(why) => failures.push(format!("{node}: {why}")),
                None if effect.is_down() => active.down.push(*node),
                None => {}
            }
        }
        self.down.extend(&active.down);
        let names: BTreeSet<NodeName> = parts.iter().map(|(node, _)| *node).collect();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let record = &mut self.records[index];
        record.what = format!("{} ({})", record.what, names.join(", "));
        if !failures.is_empty() {
            record.what = format!("{}: {}", record.what, failures.join("; "));
        }
        (self.progress)(&record.what);
        self.active.push(active);
    }

    /// Asks an agent to inject; a part that failed is kept too, since it may have been applied partly.
    async fn place(
        &self,
        index: usize,
        node: NodeName,
        effect: Effect,
        limit: Duration,
    ) -> (Placed, Option<String>) {
        let id = format!("{}_{index}_{node}", self.run);
        let placed = |fired| Placed { node, id: id.clone(), fired };
        let Some(agent) = self.cluster.agents.get(&node) else {
            return (placed(0), Some("there is no agent".to_owned()));
        };
        match agent.inject(&id, &effect, limit).await {
            Ok(fired) => (placed(fired), None),
            Err(error) => (placed(0), Some(format!("the agent at {}: {error}", agent.address()))),
        }
    }

    fn never(&mut self, index: usize, why: &str) {
        let record = &mut self.records[index];
        record.what = format!("{}: {why}", record.what);
        (self.progress)(&record.what);
    }

    async fn end_due(&mut self, due: Duration, now: Duration) {
        let (ending, rest) =
            std::mem::take(&mut self.active).into_iter().partition(|active| active.end <= due);
        self.active = rest;
        for active in ending {
            self.end(active, now).await;
        }
    }

    async fn end(&mut self, active: Active, now: Duration) {
        let take = |placed: &Placed| {
            let agent = self.cluster.agents.get(&placed.node).cloned();
            let (id, keep_down) = (placed.id.clone(), self.gone.contains(&placed.node));
            async move {
                let agent = agent?;
                Some(agent.undo(vec![id], keep_down).await)
            }
        };
        let undone = join_all(active.placed.iter().map(take)).await;
        for (placed, undone) in active.placed.iter().zip(undone) {
            match undone {
                Some(Ok(all)) => {
                    for one in all {
                        self.records[active.index].fired += one.fired.saturating_sub(placed.fired);
                        if !one.error.is_empty() {
                            let line = format!("{}: not undone yet: {}", placed.node, one.error);
                            (self.progress)(&line);
                        }
                    }
                }
                // The agent undoes the fault itself at its deadline, which is now or past.
                Some(Err(error)) => (self.progress)(&format!("the agent of {}: {error}", placed.node)),
                None => {}
            }
        }
        for node in &active.down {
            self.down.remove(node);
        }
        let record = &mut self.records[active.index];
        record.ended = Some(active.end.min(now));
        (self.progress)(&format!("over: {}", record.what));
    }

    /// Begins a change of members.
    fn change(&mut self, index: usize, member: &MemberFault) {
        let group = self.group(true);
        let one = |target: &Target| group.nodes(target).first().copied();
        let id = |cluster: &Cluster, node: Option<NodeName>| {
            node.and_then(|node| cluster.masters.get(&node).map(|master| (node, master.id)))
        };
        let line = self.records[index].what.clone();
        (self.progress)(&line);
        let changer = self.changer.clone();
        match member {
            MemberFault::TransferLeader(target) => {
                let Some((_, to)) = id(&self.cluster, one(target)) else {
                    return self.never(index, "nobody was there to lead");
                };
                self.changes.spawn(async move {
                    let failed = changer.transfer(to).await.err().map(|error| error.to_string());
                    Changed { index, added: None, removed: None, failed }
                });
            }
            MemberFault::Remove(target) => {
                let old = id(&self.cluster, one(target));
                self.begin_change(index, old, None);
            }
            MemberFault::Add(new) => self.begin_change(index, None, Some(*new)),
            MemberFault::Replace(Replace { old, new }) => match id(&self.cluster, one(old)) {
                None => self.never(index, "nobody was there to be replaced"),
                old => self.begin_change(index, old, Some(*new)),
            },
        }
    }

    fn begin_change(&mut self, index: usize, old: Option<(NodeName, u64)>, new: Option<NodeName>) {
        let agent = new.and_then(|new| self.cluster.agents.get(&new).cloned());
        if let (Some(new), None) = (new, &agent) {
            let why = format!("there is no agent on a machine for {new}; hint: --agent {new}=HOST");
            return self.never(index, &why);
        }
        let joins = new.zip(agent).zip(self.token.clone());
        self.changes.spawn(replace(self.changer.clone(), index, old, joins));
    }

    async fn changed(&mut self, changed: Changed, now: Duration) {
        let Changed { index, added, removed, failed } = changed;
        if let Some((node, master)) = added {
            self.cluster.masters.insert(node, master);
        }
        if let Some(node) = removed {
            self.cluster.masters.remove(&node);
            self.gone.insert(node);
            // The master has left: its process must not run on as if it were still a member.
            let limit = self.duration.saturating_sub(now).clamp(Duration::from_secs(1), LIMIT_MAX);
            let (placed, failed) = self.place(index, node, Effect::Kill, limit).await;
            if failed.is_none() {
                let placed = Placed { fired: placed.fired, ..placed };
                self.active.push(Active { end: self.duration, index, placed: vec![placed], down: vec![] });
            }
        }
        self.workload.set_masters(self.cluster.apis());
        match failed {
            Some(why) => self.never(index, &why),
            None => {
                let record = &mut self.records[index];
                record.fired += 1;
                record.ended = Some(now);
                (self.progress)(&format!("done: {}", record.what));
            }
        }
    }
}

/// Adds a new master, then removes an old one; either may be `None`.
async fn replace(
    changer: Changer,
    index: usize,
    old: Option<(NodeName, u64)>,
    joins: Option<((NodeName, Agent), JoinToken)>,
) -> Changed {
    let mut changed = Changed { index, added: None, removed: None, failed: None };
    if let Some(((new, agent), token)) = joins {
        let member = changer.add(&agent, &new.to_string(), &token).await;
        match member.and_then(|member| master_of(&member)) {
            Ok(master) => changed.added = Some((new, master)),
            Err(error) => changed.failed = Some(error.to_string()),
        }
    }
    if let (Some((node, id)), None) = (old, &changed.failed) {
        match changer.remove(id).await {
            Ok(()) => changed.removed = Some(node),
            Err(error) => changed.failed = Some(error.to_string()),
        }
    }
    changed
}
