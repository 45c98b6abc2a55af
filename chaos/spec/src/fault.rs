//! The vocabulary of faults, the same in the simulation and on a live cluster.
//! `experiment` holds one in every entry of the schedule; the runners inject
//! it; `report` names it by its `Display` and counts it by its [`FaultKind`].

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
/// A fault between nodes strikes what they send each other, never what clients
/// send; `from` and `to` may overlap, and nobody is parted from itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// Nothing gets through between nodes.
    Cut(Cut),
    /// Messages between nodes take longer.
    Slow(Slow),
    /// Some messages between nodes are lost.
    Lose(Lose),
    /// Messages between nodes wait, and all arrive when the fault ends.
    Hold(Hold),
    /// The process is killed (SIGKILL), and started again when the fault ends.
    Kill(Strike),
    /// The process stands still (SIGSTOP), and goes on when the fault ends (SIGCONT).
    Pause(Strike),
    /// The machine loses power: what was not synced is gone. It is started again
    /// when the fault ends.
    Powerloss(Strike),
    /// The disk fails in one of several ways.
    Disk(Disk),
    /// Other programs of the machine want all of something.
    Busy(Busy),
    /// The wall clock is wrong. The monotonic clock is right.
    Clock(Clock),
    /// The group of masters changes, as an operator would change it.
    Member(Member),
    /// A worker is struck.
    Worker(Worker),
}

/// Which links are cut: `{shape: ring}` or `{from: m1, to: [m2, m3], oneWay: true}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Cut", into = "form::Cut")]
pub enum Cut {
    /// The whole group is parted in a well-known way.
    Shape(Shape),
    /// The links between two sides.
    Links {
        /// Who sends.
        from: Target,
        /// Who should receive.
        to: Target,
        /// Only what `from` sends is lost, not what `to` answers.
        one_way: bool,
    },
}

/// How a group of masters is parted. Three masters at least, for a ring five.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Every master hears a bare majority (itself and its nearest neighbours in
    /// a ring), and no two hear the same one: Jepsen's `majorities-ring`.
    Ring,
    /// The leader is with the minority, parted from the majority.
    Minority,
    /// The leader is with the majority, parted from the minority.
    Majority,
    /// The leader is parted from every other master.
    LeaderAlone,
}

/// Longer ways between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slow {
    /// Who sends.
    pub from: Target,
    /// Who receives.
    pub to: Target,
    /// Only what `from` sends is slow; default both ways.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
    /// Added to the way of every message.
    #[serde(with = "units::duration")]
    pub latency: Duration,
    /// The latency varies by up to this, up and down, evenly; at most `latency`.
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
}

/// Lost messages between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lose {
    /// Who sends.
    pub from: Target,
    /// Who receives.
    pub to: Target,
    /// Only what `from` sends is lost; default both ways.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
    /// How many of the messages, above 0 %.
    pub percent: Percent,
}

/// Messages that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// Who sends.
    pub from: Target,
    /// Who receives.
    pub to: Target,
    /// Only what `from` sends waits; default both ways.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
}

/// Masters whose process or machine is struck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strike {
    /// Which masters.
    pub target: Target,
}

/// A failing disk: `{target: m1, kind: enospc}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Disk", into = "form::Disk")]
pub struct Disk {
    /// On which masters.
    pub target: Target,
    /// In which way.
    pub kind: DiskKind,
}

/// In which way a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// Reads and writes fail with EIO.
    Eio,
    /// Writes fail with ENOSPC.
    Enospc,
    /// One bit of a file, chosen by the seed, is turned over; once.
    Bitflip,
    /// A file, chosen by the seed, loses its end; once.
    Truncate,
    /// A sync takes longer.
    SlowFsync {
        /// Added to every sync, above zero.
        delay: Duration,
    },
    /// No more than so many writes and syncs a second, one after the other.
    Iops {
        /// How many, above zero.
        limit: u32,
    },
}

/// A machine that other programs keep busy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Busy {
    /// On which masters.
    pub target: Target,
    /// What they want.
    pub kind: BusyKind,
}

/// What other programs want all of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusyKind {
    /// Every core computes. In the simulation masters stand still for some
    /// milliseconds again and again.
    Processor,
    /// Large files are written and synced beside the data. In the simulation
    /// syncs take longer.
    Disk,
}

/// A wrong wall clock: `{target: m1, skew: -5s}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "form::Clock", into = "form::Clock")]
pub struct Clock {
    /// On which masters.
    pub target: Target,
    /// In which way.
    pub change: ClockChange,
}

/// In which way a clock is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockChange {
    /// Off by this much as long as the fault lasts, then right again.
    Skew(Offset),
    /// Set by this much, once; it stays so.
    Jump(Offset),
}

/// A change of the group of masters; it happens once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Member {
    /// A new master joins under this name.
    Add(NodeName),
    /// A master leaves for good; one at a time.
    Remove(Target),
    /// A master leaves for good and a new one takes its place.
    Replace(Replace),
    /// The leadership goes to this master. If it leads already, that counts as
    /// having fired.
    TransferLeader(Target),
}

/// Who goes and who comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// The one that leaves.
    pub old: Target,
    /// The name of the one that joins.
    pub new: NodeName,
}

/// A fault of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Which workers: `any`, `all` or names.
    pub target: Target,
    /// In which way.
    pub kind: WorkerKind,
}

/// In which way a worker is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerKind {
    /// It hears and reaches no master.
    Cut,
    /// Its process is killed, and started again when the fault ends.
    Kill,
    /// Its process stands still, and goes on when the fault ends.
    Pause,
}

impl Fault {
    /// What to count it as.
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

    /// Its key in the file.
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

    /// The targets it has, each with the path of its field below `fault`.
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

    /// The links it strikes, as sender, receiver and whether only that way; a
    /// shape has none of its own.
    pub fn links(&self) -> Option<(&Target, &Target, bool)> {
        match self {
            Self::Cut(Cut::Links { from, to, one_way })
            | Self::Slow(Slow { from, to, one_way, .. })
            | Self::Lose(Lose { from, to, one_way, .. })
            | Self::Hold(Hold { from, to, one_way }) => Some((from, to, *one_way)),
            _ => None,
        }
    }

    /// Whether it happens once and lasts no time, so that nothing is to be undone.
    pub fn is_instant(&self) -> bool {
        match self {
            Self::Disk(disk) => matches!(disk.kind, DiskKind::Bitflip | DiskKind::Truncate),
            Self::Clock(clock) => matches!(clock.change, ClockChange::Jump(_)),
            Self::Member(_) => true,
            _ => false,
        }
    }
}

/// What is not so is left out of the file.
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    /// Every fault as the file writes it, what to count it as and its line.
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
