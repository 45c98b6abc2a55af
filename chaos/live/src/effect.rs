//! What an agent does to its node: a fault of the experiment, with names looked
//! up and taken apart into what each node must do. The runner makes it, the
//! agent keeps it in its journal and applies it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One part of a fault, on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Effect {
    /// Packets are dropped.
    Drop(Drop),
    /// Packets arrive late.
    Delay(Delay),
    /// The process of the node is killed, and started again when this is undone.
    Kill,
    /// The process of the node stands still, and goes on when this is undone.
    Pause,
    /// The process of the node is killed, and what its disk had not synced is
    /// gone; it is started again when this is undone.
    #[serde(rename_all = "camelCase")]
    PowerLoss {
        /// Decides what is gone of what was not synced.
        seed: u64,
    },
    /// The disk of the node fails.
    Disk(DiskEffect),
    /// Other programs keep the node's machine busy.
    Busy(BusyEffect),
}

/// Packets that are dropped in the node's network namespace; never those of the
/// agent itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drop {
    /// Peers whose packets are dropped when they arrive.
    #[serde(default)]
    pub from: Vec<IpAddr>,
    /// Peers to whom packets are dropped before they leave.
    #[serde(default)]
    pub to: Vec<IpAddr>,
    /// How many of 10 000 packets, at random; 10 000 are all.
    pub of_ten_thousand: u32,
}

/// Packets that the node's network namespace gets later than they arrived; never those of the agent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// Peers whose packets are late.
    pub from: Vec<IpAddr>,
    /// By how much, in milliseconds; without, until this is undone.
    pub latency_ms: Option<u64>,
    /// By how much that varies, up and down, evenly, in milliseconds; at most `latency_ms`.
    #[serde(default)]
    pub jitter_ms: u64,
}

/// All packets.
pub const ALL_PACKETS: u32 = 10_000;

/// In which way the disk fails.
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
        /// Added to every sync, in milliseconds.
        delay_ms: u64,
    },
    /// Only so many writes and syncs a second.
    Iops {
        /// How many.
        limit: u32,
    },
}

/// What other programs want all of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BusyEffect {
    /// Every core.
    Processor,
    /// The disk beside the node's pid file.
    Disk,
}

impl Effect {
    /// Whether the process of the node is down as long as this lasts.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Kill | Self::PowerLoss { .. })
    }
}
