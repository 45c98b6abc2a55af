//! Types of all faults, the same in the simulation and on a live cluster. Every entry of an experiment's
//! schedule holds one; the runners inject it; `report` prints it with its `Display` and counts it by its
//! [`FaultKind`].

mod form;
mod kind;
mod line;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use kind::FaultKind;

use crate::target::{NodeName, Target};
use crate::units::{self, Offset, Percent};

/// One fault. In the file it is a map with one key, as `kill: {target: leader}`.
///
/// A fault between nodes affects what they send each other, never clients' messages; `from` and `to` may
/// overlap, and a node's messages to itself are not affected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// No message gets through between nodes.
    Cut(Cut),
    /// Messages between nodes are delayed.
    Slow(Slow),
    /// Some messages between nodes are lost.
    Lose(Lose),
    /// Messages between nodes are held back, and all arrive when the fault ends.
    Hold(Hold),
    /// The process is killed (SIGKILL), and started again when the fault ends.
    Kill(Strike),
    /// The process is paused (SIGSTOP), and continues when the fault ends (SIGCONT).
    Pause(Strike),
    /// The machine loses power: what was not synced is lost. It is started again when the fault ends.
    Powerloss(Strike),
    /// The disk fails in one of the ways of [`DiskKind`].
    Disk(Disk),
    /// Other programs use up a resource of the machine.
    Busy(Busy),
    /// The wall clock is wrong; the monotonic clock stays right.
    Clock(Clock),
    /// The group of masters is changed, as an operator would do it.
    Member(Member),
    /// A worker fails.
    Worker(Worker),
}

/// Which links are cut: `{shape: ring}` or `{from: m1, to: [m2, m3], oneWay: true}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Cut", into = "form::Cut")]
pub enum Cut {
    /// The whole group of masters is partitioned in a well-known way.
    Shape(Shape),
    /// The links between two sides.
    Links {
        /// Nodes that send.
        from: Target,
        /// Nodes that receive.
        to: Target,
        /// Whether only messages from `from` to `to` are lost, and not those in the other direction.
        one_way: bool,
    },
}

/// Way to partition a group of masters. Needs at least three masters, a ring five.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Every master reaches a bare majority (itself and its nearest neighbours in a ring), each a different
    /// one: Jepsen's `majorities-ring`.
    Ring,
    /// The leader is in the minority, separated from the majority.
    Minority,
    /// The leader is in the majority, separated from the minority.
    Majority,
    /// The leader is separated from every other master.
    LeaderAlone,
}

/// Added latency between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slow {
    /// Nodes that send.
    pub from: Target,
    /// Nodes that receive.
    pub to: Target,
    /// Whether only messages from `from` to `to` are slow; by default both directions are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
    /// Latency added to every message.
    #[serde(with = "units::duration")]
    pub latency: Duration,
    /// Maximum deviation of the latency, up or down, evenly distributed; at most `latency`. `None` for none.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
}

/// Loss of messages between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lose {
    /// Nodes that send.
    pub from: Target,
    /// Nodes that receive.
    pub to: Target,
    /// Whether only messages from `from` to `to` are lost; by default both directions are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
    /// Share of the messages that are lost, above 0 %.
    pub percent: Percent,
}

/// Messages between nodes that are held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// Nodes that send.
    pub from: Target,
    /// Nodes that receive.
    pub to: Target,
    /// Whether only messages from `from` to `to` are held back; by default both directions are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
}

/// Masters whose process or machine fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strike {
    /// Masters that fail.
    pub target: Target,
}

/// A failing disk: `{target: m1, kind: enospc}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Disk", into = "form::Disk")]
pub struct Disk {
    /// Masters whose disk fails.
    pub target: Target,
    /// Way in which the disk fails.
    pub kind: DiskKind,
}

/// Way in which a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// Reads and writes fail with EIO.
    Eio,
    /// Writes fail with ENOSPC.
    Enospc,
    /// One bit of a file is flipped, once; the seed chooses it.
    Bitflip,
    /// One file is truncated, once; the seed chooses it.
    Truncate,
    /// Every sync takes longer.
    SlowFsync {
        /// Time added to every sync, above zero.
        delay: Duration,
    },
    /// Writes and syncs are done one after the other, at most this many a second.
    Iops {
        /// Maximum number of writes and syncs a second, above zero.
        limit: u32,
    },
}

/// Machines that other programs keep busy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Busy {
    /// Masters whose machine is busy.
    pub target: Target,
    /// Resource that is used up.
    pub kind: BusyKind,
}

/// Resource that other programs use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusyKind {
    /// Every core computes. In the simulation masters stand still for some milliseconds again and again.
    Processor,
    /// Large files are written and synced beside the data. In the simulation
    /// syncs take longer.
    Disk,
}

/// A wrong wall clock: `{target: m1, skew: -5s}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Clock", into = "form::Clock")]
pub struct Clock {
    /// Masters whose clock is wrong.
    pub target: Target,
    /// Way in which the clock is wrong.
    pub change: ClockChange,
}

/// Way in which a clock is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockChange {
    /// The clock is off by this much while the fault lasts, then right again.
    Skew(Offset),
    /// The clock is moved by this much once, and stays so.
    Jump(Offset),
}

/// A change of the group of masters; it happens once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Member {
    /// A new master joins under this name.
    Add(NodeName),
    /// A master leaves for good; the target must be a single one.
    Remove(Target),
    /// A master leaves for good and a new one takes its place.
    Replace(Replace),
    /// The leadership is transferred to this master. If it leads already, the fault counts as fired.
    TransferLeader(Target),
}

/// The master that leaves and the one that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// The master that leaves.
    pub old: Target,
    /// Name of the master that joins.
    pub new: NodeName,
}

/// Workers that fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Workers that fail: `any`, `all` or names.
    pub target: Target,
    /// Way in which the workers fail.
    pub kind: WorkerKind,
}

/// Way in which a worker fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerKind {
    /// The worker is cut off from all masters.
    Cut,
    /// The worker's process is killed, and started again when the fault ends.
    Kill,
    /// The worker's process is paused, and continues when the fault ends.
    Pause,
}

impl Fault {
    /// Returns the kind that the fault counts as.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Cut(Cut::Shape(Shape::Ring)) => FaultKind::CutRing,
            Self::Cut(Cut::Shape(Shape::Minority)) => FaultKind::CutMinority,
            Self::Cut(Cut::Shape(Shape::Majority)) => FaultKind::CutMajority,
            Self::Cut(Cut::Shape(Shape::LeaderAlone)) => FaultKind::CutLeaderAlone,
            Self::Cut(Cut::Links { one_way: true, .. }) => FaultKind::CutOneWay,
            Self::Cut(Cut::Links { one_way: false, .. }) => FaultKind::Cut,
            Self::Slow(_) => FaultKind::Slow,
            Self::Lose(_) => FaultKind::Lose,
            Self::Hold(_) => FaultKind::Hold,
            Self::Kill(_) => FaultKind::Kill,
            Self::Pause(_) => FaultKind::Pause,
            Self::Powerloss(_) => FaultKind::Powerloss,
            Self::Disk(disk) => match disk.kind {
                DiskKind::Eio => FaultKind::DiskEio,
                DiskKind::Enospc => FaultKind::DiskEnospc,
                DiskKind::Bitflip => FaultKind::DiskBitflip,
                DiskKind::Truncate => FaultKind::DiskTruncate,
                DiskKind::SlowFsync { .. } => FaultKind::DiskSlowFsync,
                DiskKind::Iops { .. } => FaultKind::DiskIops,
            },
            Self::Busy(Busy { kind: BusyKind::Processor, .. }) => FaultKind::BusyProcessor,
            Self::Busy(Busy { kind: BusyKind::Disk, .. }) => FaultKind::BusyDisk,
            Self::Clock(Clock { change: ClockChange::Skew(_), .. }) => FaultKind::ClockSkew,
            Self::Clock(Clock { change: ClockChange::Jump(_), .. }) => FaultKind::ClockJump,
            Self::Member(Member::Add(_)) => FaultKind::MemberAdd,
            Self::Member(Member::Remove(_)) => FaultKind::MemberRemove,
            Self::Member(Member::Replace(_)) => FaultKind::MemberReplace,
            Self::Member(Member::TransferLeader(_)) => FaultKind::MemberTransferLeader,
            Self::Worker(worker) => match worker.kind {
                WorkerKind::Cut => FaultKind::WorkerCut,
                WorkerKind::Kill => FaultKind::WorkerKill,
                WorkerKind::Pause => FaultKind::WorkerPause,
            },
        }
    }

    /// Returns the fault's key in the file.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Cut(_) => "cut",
            Self::Slow(_) => "slow",
            Self::Lose(_) => "lose",
            Self::Hold(_) => "hold",
            Self::Kill(_) => "kill",
            Self::Pause(_) => "pause",
            Self::Powerloss(_) => "powerloss",
            Self::Disk(_) => "disk",
            Self::Busy(_) => "busy",
            Self::Clock(_) => "clock",
            Self::Member(_) => "member",
            Self::Worker(_) => "worker",
        }
    }

    /// Returns the fault's targets, each with the path of its field below `fault`.
    pub fn targets(&self) -> Vec<(&'static str, &Target)> {
        match self {
            Self::Cut(Cut::Links { from, to, .. }) => vec![("cut.from", from), ("cut.to", to)],
            Self::Slow(Slow { from, to, .. }) => vec![("slow.from", from), ("slow.to", to)],
            Self::Lose(Lose { from, to, .. }) => vec![("lose.from", from), ("lose.to", to)],
            Self::Hold(Hold { from, to, .. }) => vec![("hold.from", from), ("hold.to", to)],
            Self::Kill(Strike { target }) => vec![("kill.target", target)],
            Self::Pause(Strike { target }) => vec![("pause.target", target)],
            Self::Powerloss(Strike { target }) => vec![("powerloss.target", target)],
            Self::Disk(Disk { target, .. }) => vec![("disk.target", target)],
            Self::Busy(Busy { target, .. }) => vec![("busy.target", target)],
            Self::Clock(Clock { target, .. }) => vec![("clock.target", target)],
            Self::Member(Member::Remove(target)) => vec![("member.remove", target)],
            Self::Member(Member::Replace(Replace { old, .. })) => vec![("member.replace.old", old)],
            Self::Member(Member::TransferLeader(target)) => vec![("member.transferLeader", target)],
            Self::Worker(Worker { target, .. }) => vec![("worker.target", target)],
            Self::Cut(Cut::Shape(_)) | Self::Member(Member::Add(_)) => Vec::new(),
        }
    }

    /// Returns the links that the fault affects, as sender, receiver and whether only that direction; `None`
    /// for faults without links, such as a shape.
    pub fn links(&self) -> Option<(&Target, &Target, bool)> {
        match self {
            Self::Cut(Cut::Links { from, to, one_way })
            | Self::Slow(Slow { from, to, one_way, .. })
            | Self::Lose(Lose { from, to, one_way, .. })
            | Self::Hold(Hold { from, to, one_way }) => Some((from, to, *one_way)),
            _ => None,
        }
    }

    /// Returns whether the fault happens once and lasts no time, so that nothing needs to be undone.
    pub fn is_instant(&self) -> bool {
        match self {
            Self::Disk(disk) => matches!(disk.kind, DiskKind::Bitflip | DiskKind::Truncate),
            Self::Clock(clock) => matches!(clock.change, ClockChange::Jump(_)),
            Self::Member(_) => true,
            _ => false,
        }
    }
}

/// Returns whether a flag is false, so that the file omits it.
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    /// Returns every fault as the file writes it, with its kind and its report line.
    fn every_fault() -> Vec<(Value, &'static str, &'static str)> {
        vec![
            (json!({"cut": {"from": "m1", "to": ["m2", "m3"]}}), "cut", "cut m1 <-> m2, m3"),
            (
                json!({"cut": {"from": "all", "to": "leader", "oneWay": true}}),
                "cut-one-way",
                "cut all -> leader",
            ),
            (json!({"cut": {"shape": "ring"}}), "cut-ring", "cut ring"),
            (json!({"cut": {"shape": "minority"}}), "cut-minority", "cut minority"),
            (json!({"cut": {"shape": "majority"}}), "cut-majority", "cut majority"),
            (json!({"cut": {"shape": "leader-alone"}}), "cut-leader-alone", "cut leader-alone"),
            (
                json!({"slow": {"from": "leader", "to": "all", "latency": "200ms", "jitter": "50ms"}}),
                "slow",
                "slow leader <-> all by 200ms ± 50ms",
            ),
            (
                json!({"lose": {"from": "m1", "to": "m2", "oneWay": true, "percent": "12.5%"}}),
                "lose",
                "lose 12.5% of m1 -> m2",
            ),
            (json!({"hold": {"from": "minority", "to": "majority"}}), "hold", "hold minority <-> majority"),
            (json!({"kill": {"target": "leader"}}), "kill", "kill leader"),
            (json!({"pause": {"target": "follower"}}), "pause", "pause follower"),
            (json!({"powerloss": {"target": "all"}}), "powerloss", "powerloss all"),
            (json!({"disk": {"target": "m1", "kind": "eio"}}), "disk-eio", "disk eio on m1"),
            (json!({"disk": {"target": "any", "kind": "enospc"}}), "disk-enospc", "disk enospc on any"),
            (json!({"disk": {"target": "m1", "kind": "bitflip"}}), "disk-bitflip", "disk bitflip on m1"),
            (json!({"disk": {"target": "m1", "kind": "truncate"}}), "disk-truncate", "disk truncate on m1"),
            (
                json!({"disk": {"target": "leader", "kind": "slow-fsync", "delay": "1s 500ms"}}),
                "disk-slow-fsync",
                "disk slow-fsync by 1s 500ms on leader",
            ),
            (
                json!({"disk": {"target": "leader", "kind": "iops", "limit": 150}}),
                "disk-iops",
                "disk of 150 operations a second on leader",
            ),
            (
                json!({"busy": {"target": "all", "kind": "processor"}}),
                "busy-processor",
                "busy processor of all",
            ),
            (json!({"busy": {"target": "m1", "kind": "disk"}}), "busy-disk", "busy disk of m1"),
            (json!({"clock": {"target": "m2", "skew": "-5s"}}), "clock-skew", "clock skew -5s on m2"),
            (json!({"clock": {"target": "m2", "jump": "+1h"}}), "clock-jump", "clock jump +1h on m2"),
            (json!({"member": {"add": "m4"}}), "member-add", "member add m4"),
            (json!({"member": {"remove": "follower"}}), "member-remove", "member remove follower"),
            (
                json!({"member": {"replace": {"old": "m1", "new": "m4"}}}),
                "member-replace",
                "member replace m1 by m4",
            ),
            (
                json!({"member": {"transferLeader": "follower"}}),
                "member-transfer-leader",
                "member transfer leader to follower",
            ),
            (json!({"worker": {"target": "w1", "kind": "cut"}}), "worker-cut", "worker cut w1"),
            (json!({"worker": {"target": "any", "kind": "kill"}}), "worker-kill", "worker kill any"),
            (json!({"worker": {"target": "all", "kind": "pause"}}), "worker-pause", "worker pause all"),
        ]
    }

    #[test]
    fn every_fault_comes_back_as_written() {
        for (written, kind, line) in every_fault() {
            let fault: Fault = from_value(written.clone()).unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(to_value(&fault).unwrap(), written);
            assert_eq!(fault.kind().to_string(), kind);
            assert_eq!(fault.to_string(), line);
            assert!(written.get(fault.key()).is_some(), "{} in {written}", fault.key());
        }
    }

    #[test]
    fn every_kind_has_a_fault() {
        let seen: BTreeSet<FaultKind> = every_fault()
            .into_iter()
            .map(|(written, ..)| from_value::<Fault>(written).unwrap().kind())
            .collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), FaultKind::ALL);
    }

    #[test]
    fn the_path_of_every_target_is_that_of_the_file() {
        for (written, ..) in every_fault() {
            let fault: Fault = from_value(written.clone()).unwrap();
            for (path, target) in fault.targets() {
                let pointer = format!("/{}", path.replace('.', "/"));
                assert_eq!(
                    written.pointer(&pointer),
                    Some(&to_value(target).unwrap()),
                    "{path} in {written}"
                );
            }
        }
    }

    #[test]
    fn what_happens_once_is_known() {
        let instant: Vec<&str> = every_fault()
            .into_iter()
            .filter(|(written, ..)| from_value::<Fault>(written.clone()).unwrap().is_instant())
            .map(|(_, kind, _)| kind)
            .collect();
        assert_eq!(
            instant,
            [
                "disk-bitflip",
                "disk-truncate",
                "clock-jump",
                "member-add",
                "member-remove",
                "member-replace",
                "member-transfer-leader"
            ]
        );
    }

    #[test]
    fn unknown_words_and_fields_are_refused() {
        for bad in [
            json!({"cutt": {}}),
            json!({"kill": {"target": "m1", "hard": true}}),
            json!({"kill": {}}),
            json!({"kill": "m1"}),
            json!({"slow": {"from": "m1", "to": "m2"}}),
            json!({"kill": {"target": "m1"}, "pause": {"target": "m1"}}),
            json!({"member": {"add": "leader"}}),
            json!({"worker": {"target": "w1", "kind": "burn"}}),
        ] {
            assert!(from_value::<Fault>(bad.clone()).is_err(), "{bad}");
        }
    }
}
