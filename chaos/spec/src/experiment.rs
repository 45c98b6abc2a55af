//! The experiment file: the cluster, the load, the faults with their times, and what must hold. `ephor-sim`
//! and the live runner parse it ([`Experiment::parse`]) and run it; a shrinker writes a smaller one
//! ([`Experiment::to_yaml`]).

mod check;
mod overlap;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::units::{self, Percent};
use crate::{Error, document};

/// An experiment, with the fields of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Experiment {
    /// Version of the file format.
    pub api_version: ApiVersion,
    /// Kind of the file, always `Experiment`.
    pub kind: Kind,
    /// Name of the experiment.
    pub metadata: Metadata,
    /// Cluster, load, faults and checks of the experiment.
    pub spec: Spec,
}

/// Supported versions of the file format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// Version `ephor.dev/v1alpha1`.
    #[default]
    #[serde(rename = "ephor.dev/v1alpha1")]
    V1Alpha1,
}

/// Supported kinds of file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Kind `Experiment`.
    #[default]
    Experiment,
}

/// Name of an experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name as a DNS label (RFC 1123), like names in Kubernetes; reports are stored under it.
    pub name: String,
}

/// Cluster, load, faults and checks of an experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The cluster that the experiment needs.
    pub cluster: Cluster,
    /// Probes that must hold before the first fault and, outside faults, throughout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steady_state: Vec<Probe>,
    /// Load of the clients during the experiment.
    pub workload: Workload,
    /// The faults, in the order in which they begin.
    pub schedule: Vec<Entry>,
    /// Invariants that must hold, at least one.
    pub invariants: Vec<Invariant>,
    /// Maximum time, after the last fault has ended, until writes are acknowledged again and the replicas
    /// agree; default 10 s.
    #[serde(default = "recover_within", with = "units::duration")]
    pub recover_within: Duration,
    /// Bounds that must hold throughout, in and outside faults.
    #[serde(default, skip_serializing_if = "Bounds::is_empty")]
    pub bounds: Bounds,
    /// Conditions for ending the run early.
    #[serde(default, skip_serializing_if = "AbortIf::is_empty")]
    pub abort_if: AbortIf,
    /// How long the clients run. Then every fault is undone, every node that is down is started, and
    /// `recover_within` begins.
    #[serde(with = "units::duration")]
    pub duration: Duration,
}

fn recover_within() -> Duration {
    Duration::from_secs(10)
}

/// Number of nodes: masters `m1`, `m2`, ... and workers `w1`, `w2`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Number of masters: 1, 3, 5 or 7.
    pub masters: u32,
    /// Number of workers; default 0.
    #[serde(default)]
    pub workers: u32,
    /// Distance between the masters.
    #[serde(default, skip_serializing_if = "Distance::is_near")]
    pub distance: Distance,
    /// Number of log entries between two snapshots in a simulation; `None` for the masters' default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_count: Option<u64>,
}

/// Distance between the masters of a cluster.
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
    /// Returns whether this is the default, which the file omits.
    pub fn is_near(&self) -> bool {
        *self == Self::Near
    }
}

/// A probe of the steady state with its tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// Every write must be acknowledged within this time.
    Write(Within),
    /// Every linearizable read must be answered within this time.
    Read(Within),
    /// Writes must be acknowledged for this share of the time outside faults. Here a fault lasts until the
    /// cluster has healed after it.
    Availability(AtLeast),
}

/// An upper bound on a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Within {
    /// Maximum time, above zero.
    #[serde(with = "units::duration")]
    pub within: Duration,
}

/// A lower bound on a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AtLeast {
    /// Minimum share.
    pub at_least: Percent,
}

/// Load of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Number of clients, at least one.
    pub clients: u32,
    /// Number of operations begun per second by all clients together, at least one. The load is open: it does
    /// not wait for answers.
    pub rate: u32,
    /// Number of objects that the clients share, at least one.
    pub keys: u32,
    /// Relative frequency of each operation.
    pub mix: Mix,
}

/// Relative frequency of each operation, as weights: 3 is three times as often as 1, and 0 (the default) is
/// never. At least one is above zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Mix {
    /// Creates an object.
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
    /// Patches an object, whatever its version.
    #[serde(skip_serializing_if = "is_zero")]
    pub patch: u32,
    /// Lists all objects in pages of a few objects each.
    #[serde(skip_serializing_if = "is_zero")]
    pub page: u32,
    /// Lists all objects of any version (`resourceVersion=0`).
    #[serde(skip_serializing_if = "is_zero")]
    pub any_version: u32,
}

/// Returns whether a weight is zero, so that the file omits it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(weight: &u32) -> bool {
    *weight == 0
}

/// A fault and when it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When the fault begins, since the clients began; before `duration`.
    #[serde(with = "units::duration")]
    pub at: Duration,
    /// How long the fault lasts (`for` in the file), within `duration`; then it is undone, and a node that is
    /// down is started. `None`: until `duration`, so a killed node stays down for the rest of the run. A
    /// fault that happens once has none.
    #[serde(default, rename = "for", with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Duration>,
    /// The fault.
    pub fault: Fault,
}

impl Entry {
    /// Returns when the fault is undone, in a run of `duration`; for a fault that happens once, when it
    /// begins.
    pub fn end(&self, duration: Duration) -> Duration {
        match self.lasts {
            _ if self.fault.is_instant() => self.at,
            Some(lasts) => self.at.saturating_add(lasts).min(duration),
            None => duration,
        }
    }
}

/// An invariant that must hold over the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// Acknowledged writes are there at the end.
    AcknowledgedWritesKept,
    /// No object or value is there that no client wrote.
    NoPhantoms,
    /// The history of every object is linearizable (Herlihy and Wing 1990).
    Linearizable,
    /// Watches deliver every change once, in order, and nothing else.
    WatchesExact,
    /// At most one master leads in a term (Raft, section 5.2).
    OneLeaderPerTerm,
    /// All masters hold the same objects after the faults.
    ReplicasIdentical,
    /// Masters without a quorum acknowledge nothing.
    MinoritySilent,
    /// Within `recoverWithin` after the last fault, writes are acknowledged and
    /// all masters have caught up.
    Heals,
}

impl Invariant {
    /// All invariants, in their order.
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

    /// Returns the name used in the file and in reports.
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

/// Bounds that must hold throughout the run, in and outside faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// Maximum number of elections after the first leader; `None` for no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elections: Option<u64>,
    /// Maximum time until any write is answered, above zero; an unanswered write exceeds it. `None` for no
    /// bound.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub longest_write: Option<Duration>,
    /// Maximum time after each kill or power loss of the leader until a higher term is seen, above zero;
    /// `None` for no bound.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub noticed: Option<Duration>,
}

impl Bounds {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Conditions for ending the run early: any of those given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortIf {
    /// Abort if no write was acknowledged for this long, above zero; `None` for never.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub unavailable_for: Option<Duration>,
    /// Abort if this many acknowledged writes are lost, at least one; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_writes: Option<u64>,
}

impl AbortIf {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Experiment {
    /// Parses an experiment file.
    ///
    /// # Errors
    /// Fails with the first thing wrong: no YAML, unknown, duplicate or missing fields, bad values, and
    /// everything that [`Experiment::check`] finds.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let value = document::read(text)?;
        let experiment: Self = serde_path_to_error::deserialize(value)
            .map_err(|error| Error::from_serde(error.path(), &error.inner().to_string()))?;
        experiment.check()?;
        Ok(experiment)
    }

    /// Checks what the types do not ensure, for an experiment that was built in code and not parsed.
    ///
    /// # Errors
    /// Fails with the first thing wrong: a number out of range, an unknown node, a target that the fault
    /// cannot strike, a fault after the end or out of order, two faults that contradict each other, an
    /// invariant that this load cannot decide.
    pub fn check(&self) -> Result<(), Error> {
        check::all(self)
    }

    /// Returns the text of the experiment's file, which [`Experiment::parse`] reads as the same experiment.
    ///
    /// # Errors
    /// Fails only if the YAML library does; no such case is known.
    pub fn to_yaml(&self) -> Result<String, Error> {
        let failed =
            |error: &dyn fmt::Display| Error::new("file", error.to_string(), "this is a bug of Ephor");
        let value = serde_json::to_value(self).map_err(|error| failed(&error))?;
        serde_norway::to_string(&value).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests;
