//! Formats a fault as one line, for errors and reports, through `Display`.

use std::fmt;

use super::{
    Busy, BusyKind, Clock, ClockChange, Cut, Disk, DiskKind, Fault, Hold, Lose, Member, Replace, Shape, Slow,
    Strike, Worker, WorkerKind,
};
use crate::target::Target;
use crate::units::words;

/// Formats the fault as one line, such as `cut m1 -> m2, m3`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(Cut::Shape(shape)) => write!(f, "cut {shape}"),
            Self::Cut(Cut::Links { from, to, one_way }) => write!(f, "cut {}", Way(from, to, *one_way)),
            Self::Slow(Slow { from, to, one_way, latency, jitter }) => {
                write!(f, "slow {} by {}", Way(from, to, *one_way), words(*latency))?;
                jitter.map_or(Ok(()), |jitter| write!(f, " ± {}", words(jitter)))
            }
            Self::Lose(Lose { from, to, one_way, percent }) => {
                write!(f, "lose {percent} of {}", Way(from, to, *one_way))
            }
            Self::Hold(Hold { from, to, one_way }) => write!(f, "hold {}", Way(from, to, *one_way)),
            Self::Kill(Strike { target }) => write!(f, "kill {target}"),
            Self::Pause(Strike { target }) => write!(f, "pause {target}"),
            Self::Powerloss(Strike { target }) => write!(f, "powerloss {target}"),
            Self::Disk(Disk { target, kind }) => write!(f, "disk {kind} on {target}"),
            Self::Busy(Busy { target, kind }) => write!(f, "busy {kind} of {target}"),
            Self::Clock(Clock { target, change: ClockChange::Skew(by) }) => {
                write!(f, "clock skew {by} on {target}")
            }
            Self::Clock(Clock { target, change: ClockChange::Jump(by) }) => {
                write!(f, "clock jump {by} on {target}")
            }
            Self::Member(Member::Add(new)) => write!(f, "member add {new}"),
            Self::Member(Member::Remove(old)) => write!(f, "member remove {old}"),
            Self::Member(Member::Replace(Replace { old, new })) => {
                write!(f, "member replace {old} by {new}")
            }
            Self::Member(Member::TransferLeader(to)) => write!(f, "member transfer leader to {to}"),
            Self::Worker(Worker { target, kind }) => write!(f, "worker {kind} {target}"),
        }
    }
}

/// Two sides of a link, and whether only the first sends; formatted with an arrow.
struct Way<'a>(&'a Target, &'a Target, bool);

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.0, if self.2 { "->" } else { "<->" }, self.1)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "ring",
            Self::Minority => "minority",
            Self::Majority => "majority",
            Self::LeaderAlone => "leader-alone",
        })
    }
}

impl fmt::Display for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eio => f.write_str("eio"),
            Self::Enospc => f.write_str("enospc"),
            Self::Bitflip => f.write_str("bitflip"),
            Self::Truncate => f.write_str("truncate"),
            Self::SlowFsync { delay } => write!(f, "slow-fsync by {}", words(*delay)),
            Self::Iops { limit } => write!(f, "of {limit} operations a second"),
        }
    }
}

impl fmt::Display for BusyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processor => "processor",
            Self::Disk => "disk",
        })
    }
}

impl fmt::Display for WorkerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "cut",
            Self::Kill => "kill",
            Self::Pause => "pause",
        })
    }
}
