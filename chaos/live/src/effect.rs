//! What an agent does to its node: one node's part of an experiment's fault, with all names resolved. The
//! runner creates it; the agent writes it to its journal and applies it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The part of a fault that one node's agent applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Effect {
    /// Drops packets.
    Drop(Drop),
    /// Delays packets that arrive.
    Delay(Delay),
    /// Kills the node's process; undoing starts it again.
    Kill,
    /// Pauses the node's process; undoing lets it continue.
    Pause,
    /// Kills the node's process and takes away what its disk had not synced; undoing starts the process
    /// again.
    #[serde(rename_all = "camelCase")]
    PowerLoss {
        /// Seed that decides which unsynced data is lost.
        seed: u64,
    },
    /// Makes the node's disk fail.
    Disk(DiskEffect),
    /// Runs other programs that keep the node's machine busy.
    Busy(BusyEffect),
}

/// Packets to drop in the node's network namespace; the agent's own packets are never dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drop {
    /// Peers whose packets are dropped on arrival.
    #[serde(default)]
    pub from: Vec<IpAddr>,
    /// Peers to which packets are dropped before they leave.
    #[serde(default)]
    pub to: Vec<IpAddr>,
    /// How many of 10 000 packets are dropped, at random; 10 000 drops all.
    pub of_ten_thousand: u32,
}

/// Packets to delay in the node's network namespace; the agent's own packets are never delayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// Peers whose packets are delayed.
    pub from: Vec<IpAddr>,
    /// Delay in milliseconds; `None` delays packets until the effect is undone.
    pub latency_ms: Option<u64>,
    /// Maximum deviation of the delay, up or down, evenly distributed, in milliseconds; at most `latency_ms`.
    #[serde(default)]
    pub jitter_ms: u64,
}

/// Value of [`Drop::of_ten_thousand`] that drops all packets.
pub const ALL_PACKETS: u32 = 10_000;

/// Way in which the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum DiskEffect {
    /// Calls fail with EIO.
    Eio,
    /// Writes fail with ENOSPC.
    Enospc,
    /// Syncs take longer.
    #[serde(rename_all = "camelCase")]
    SlowFsync {
        /// Time added to every sync, in milliseconds.
        delay_ms: u64,
    },
    /// Only a limited number of writes and syncs a second are done.
    Iops {
        /// Maximum number of writes and syncs a second.
        limit: u32,
    },
}

/// Resource that other programs use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BusyEffect {
    /// Every core.
    Processor,
    /// The disk of the node's pid file.
    Disk,
}

impl Effect {
    /// Returns whether the node's process is down while this effect lasts.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Kill | Self::PowerLoss { .. })
    }
}
