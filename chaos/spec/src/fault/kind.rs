//! Kinds of faults for counting. `fault` maps every fault to its kind; runners count by kind which faults
//! have fired, and `report` writes it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kind of a fault, as finely divided as coverage is counted. The order is that of the variants in `fault`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the fault and the variant of it in `fault`")]
pub enum FaultKind {
    Cut,
    CutOneWay,
    CutRing,
    CutMinority,
    CutMajority,
    CutLeaderAlone,
    Slow,
    Lose,
    Hold,
    Kill,
    Pause,
    Powerloss,
    DiskEio,
    DiskEnospc,
    DiskBitflip,
    DiskTruncate,
    DiskSlowFsync,
    DiskIops,
    BusyProcessor,
    BusyDisk,
    ClockSkew,
    ClockJump,
    MemberAdd,
    MemberRemove,
    MemberReplace,
    MemberTransferLeader,
    WorkerCut,
    WorkerKill,
    WorkerPause,
}

impl FaultKind {
    /// All kinds, in their order.
    pub const ALL: [Self; 29] = [
        Self::Cut,
        Self::CutOneWay,
        Self::CutRing,
        Self::CutMinority,
        Self::CutMajority,
        Self::CutLeaderAlone,
        Self::Slow,
        Self::Lose,
        Self::Hold,
        Self::Kill,
        Self::Pause,
        Self::Powerloss,
        Self::DiskEio,
        Self::DiskEnospc,
        Self::DiskBitflip,
        Self::DiskTruncate,
        Self::DiskSlowFsync,
        Self::DiskIops,
        Self::BusyProcessor,
        Self::BusyDisk,
        Self::ClockSkew,
        Self::ClockJump,
        Self::MemberAdd,
        Self::MemberRemove,
        Self::MemberReplace,
        Self::MemberTransferLeader,
        Self::WorkerCut,
        Self::WorkerKill,
        Self::WorkerPause,
    ];

    /// Returns the name in kebab-case, as used in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::CutRing => "cut-ring",
            Self::CutMinority => "cut-minority",
            Self::CutMajority => "cut-majority",
            Self::CutLeaderAlone => "cut-leader-alone",
            Self::Slow => "slow",
            Self::Lose => "lose",
            Self::Hold => "hold",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Powerloss => "powerloss",
            Self::DiskEio => "disk-eio",
            Self::DiskEnospc => "disk-enospc",
            Self::DiskBitflip => "disk-bitflip",
            Self::DiskTruncate => "disk-truncate",
            Self::DiskSlowFsync => "disk-slow-fsync",
            Self::DiskIops => "disk-iops",
            Self::BusyProcessor => "busy-processor",
            Self::BusyDisk => "busy-disk",
            Self::ClockSkew => "clock-skew",
            Self::ClockJump => "clock-jump",
            Self::MemberAdd => "member-add",
            Self::MemberRemove => "member-remove",
            Self::MemberReplace => "member-replace",
            Self::MemberTransferLeader => "member-transfer-leader",
            Self::WorkerCut => "worker-cut",
            Self::WorkerKill => "worker-kill",
            Self::WorkerPause => "worker-pause",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn all_is_in_order_and_the_name_is_that_of_serde() {
        assert!(FaultKind::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for kind in FaultKind::ALL {
            assert_eq!(to_value(kind).unwrap(), json!(kind.name()));
        }
    }
}
