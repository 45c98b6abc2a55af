//! The experiment file: which cluster, which load, which faults when, and what
//! must hold. `ephor-sim` and the live runner read it here ([`Experiment::parse`])
//! and run it; a shrinker writes what is left of one ([`Experiment::to_yaml`]).

mod check;
mod overlap;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::units::{self, Percent};
use crate::{Error, document};

/// An experiment, as its file writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Experiment {
    /// The version of the file format.
    pub api_version: ApiVersion,
    /// Always `Experiment`.
    pub kind: Kind,
    /// What it is called.
    pub metadata: Metadata,
    /// What it does.
    pub spec: Spec,
}

/// The versions of the file format that are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// `ephor.dev/v1alpha1`
    #[default]
    #[serde(rename = "ephor.dev/v1alpha1")]
    V1Alpha1,
}

/// The kinds of file that are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `Experiment`
    #[default]
    Experiment,
}

/// What an experiment is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// A DNS label (RFC 1123), as names in Kubernetes are; reports are filed
    /// under it.
    pub name: String,
}

/// What an experiment does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The cluster it needs.
    pub cluster: Cluster,
    /// What holds before the first fault and, outside faults, throughout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steady_state: Vec<Probe>,
    /// What the clients do meanwhile.
    pub workload: Workload,
    /// The faults, in the order in which they begin.
    pub schedule: Vec<Entry>,
    /// What must hold, at least one.
    pub invariants: Vec<Invariant>,
    /// How long the cluster may take, after the last fault has ended, until
    /// writes are acknowledged again and the replicas agree; default 10 s.
    #[serde(default = "recover_within", with = "units::duration")]
    pub recover_within: Duration,
    /// What holds throughout, in and outside faults.
    #[serde(default, skip_serializing_if = "Bounds::is_empty")]
    pub bounds: Bounds,
    /// When to give up before the end.
    #[serde(default, skip_serializing_if = "AbortIf::is_empty")]
    pub abort_if: AbortIf,
    /// How long the clients run. At the end every fault is undone and every node
    /// that is down is started, and `recover_within` begins.
    #[serde(with = "units::duration")]
    pub duration: Duration,
}

fn recover_within() -> Duration {
    Duration::from_secs(10)
}

/// How many nodes: masters `m1`, `m2`, ... and workers `w1`, `w2`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// 1, 3, 5 or 7.
    pub masters: u32,
    /// Default none.
    #[serde(default)]
    pub workers: u32,
    /// How far the masters are from one another.
    #[serde(default, skip_serializing_if = "Distance::is_near")]
    pub distance: Distance,
    /// Entries of the log between two snapshots, in a simulation; default as masters have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_count: Option<u64>,
}

/// How far the masters of a cluster are from one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// In one place, with the timers that masters have by default.
    #[default]
    Near,
    /// In places up to 80 ms apart, with timers ten times as long.
    Far,
}

impl Distance {
    /// Whether it is the default.
    pub fn is_near(&self) -> bool {
        *self == Self::Near
    }
}

/// A probe of the steady state and its tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// A write is acknowledged within a time.
    Write(Within),
    /// A linearizable read is answered within a time.
    Read(Within),
    /// Writes are acknowledged for a share of the time outside faults. A fault
    /// lasts, for this, until the cluster has healed after it.
    Availability(AtLeast),
}

/// A bound on a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Within {
    /// At most this, above zero.
    #[serde(with = "units::duration")]
    pub within: Duration,
}

/// A bound on a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AtLeast {
    /// At least this.
    pub at_least: Percent,
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// How many clients, at least one.
    pub clients: u32,
    /// Operations begun a second by all clients together, at least one. The load
    /// is open: it does not wait for answers.
    pub rate: u32,
    /// How many objects they share, at least one.
    pub keys: u32,
    /// How often which operation.
    pub mix: Mix,
}

/// How often which operation, as weights: 3 is three times as often as 1, and
/// what is left out never happens. One at least is above zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Mix {
    /// Makes an object.
    pub create: u32,
    /// Replaces an object at the resourceVersion last seen.
    pub update: u32,
    /// Deletes an object.
    pub delete: u32,
    /// Reads an object.
    pub get: u32,
    /// Lists all objects.
    pub list: u32,
    /// Watches from the resourceVersion last seen.
    pub watch: u32,
    /// Patches an object, whatever it is.
    #[serde(skip_serializing_if = "is_zero")]
    pub patch: u32,
    /// Lists all objects in pages of a few.
    #[serde(skip_serializing_if = "is_zero")]
    pub page: u32,
    /// Lists all objects of any version (`resourceVersion=0`).
    #[serde(skip_serializing_if = "is_zero")]
    pub any_version: u32,
}

/// What is not asked for is left out of the file.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(weight: &u32) -> bool {
    *weight == 0
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it begins, since the clients began; before `duration`.
    #[serde(with = "units::duration")]
    pub at: Duration,
    /// How long it lasts (`for` in the file), within `duration`; then it is
    /// undone, and a node that is down is started. Absent: until `duration`, so
    /// a node killed stays down for the rest of the run. A fault that happens
    /// once has none.
    #[serde(default, rename = "for", with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Duration>,
    /// What happens.
    pub fault: Fault,
}

impl Entry {
    /// When it is undone, in a run of `duration`; for a fault that happens once,
    /// when it begins.
    pub fn end(&self, duration: Duration) -> Duration {
        match self.lasts {
            _ if self.fault.is_instant() => self.at,
            Some(lasts) => self.at.saturating_add(lasts).min(duration),
            None => duration,
        }
    }
}

/// What must hold over the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// What was acknowledged is there at the end.
    AcknowledgedWritesKept,
    /// Nothing is there that nobody wrote.
    NoPhantoms,
    /// The history of every object is linearizable (Herlihy and Wing 1990).
    Linearizable,
    /// Watches deliver every change once, in order, and nothing else.
    WatchesExact,
    /// At most one master leads in a term (Raft, section 5.2).
    OneLeaderPerTerm,
    /// All masters hold the same objects once the faults are over.
    ReplicasIdentical,
    /// Masters without a quorum acknowledge nothing.
    MinoritySilent,
    /// Within `recoverWithin` after the last fault, writes are acknowledged and
    /// all masters have caught up.
    Heals,
}

impl Invariant {
    /// Every invariant, in order.
    pub const ALL: [Self; 8] = [
        Self::AcknowledgedWritesKept,
        Self::NoPhantoms,
        Self::Linearizable,
        Self::WatchesExact,
        Self::OneLeaderPerTerm,
        Self::ReplicasIdentical,
        Self::MinoritySilent,
        Self::Heals,
    ];

    /// The name in the file and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::AcknowledgedWritesKept => "acknowledged-writes-kept",
            Self::NoPhantoms => "no-phantoms",
            Self::Linearizable => "linearizable",
            Self::WatchesExact => "watches-exact",
            Self::OneLeaderPerTerm => "one-leader-per-term",
            Self::ReplicasIdentical => "replicas-identical",
            Self::MinoritySilent => "minority-silent",
            Self::Heals => "heals",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What holds throughout the run, in and outside faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// At most so many times another master leads, or the same in another term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elections: Option<u64>,
    /// No write waits longer for its answer, above zero. One that gets none waits for ever.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub longest_write: Option<Duration>,
    /// After each kill and each power loss of the leader a higher term is there within this, above zero.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub noticed: Option<Duration>,
}

impl Bounds {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// When to give up: on any of what is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortIf {
    /// No write was acknowledged for this long, above zero.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub unavailable_for: Option<Duration>,
    /// This many acknowledged writes are lost, at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_writes: Option<u64>,
}

impl AbortIf {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Experiment {
    /// Reads an experiment file.
    ///
    /// # Errors
    /// The first thing wrong with it: no YAML, unknown or duplicate or missing
    /// fields, bad values, and everything [`Experiment::check`] finds.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let value = document::read(text)?;
        let experiment: Self = serde_path_to_error::deserialize(value)
            .map_err(|error| Error::from_serde(error.path(), &error.inner().to_string()))?;
        experiment.check()?;
        Ok(experiment)
    }

    /// Checks what the types cannot, of an experiment that was made and not read.
    ///
    /// # Errors
    /// The first thing wrong: a number out of range, a name of no node, a target
    /// that the fault cannot strike, a fault after the end or out of order, two
    /// faults that contradict each other, an invariant that this load cannot decide.
    pub fn check(&self) -> Result<(), Error> {
        check::all(self)
    }

    /// The text of its file, which [`Experiment::parse`] reads as the same.
    ///
    /// # Errors
    /// None that is known; what the YAML library says.
    pub fn to_yaml(&self) -> Result<String, Error> {
        let failed =
            |error: &dyn fmt::Display| Error::new("file", error.to_string(), "this is a bug of Ephor");
        let value = serde_json::to_value(self).map_err(|error| failed(&error))?;
        serde_norway::to_string(&value).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests;
