//! Inspection of a member's vote and log, for the simulation's checks. No production code uses it.

use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::RaftEntry as _;
use storage::codec::decode;

use crate::consensus::Consensus;
use crate::raft_types::{RaftEntry, Vote};
use crate::types::NodeId;

/// The master that a member voted for last, or follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteSeen {
    /// The term of the vote.
    pub term: u64,
    /// The id of the master voted for.
    pub candidate: NodeId,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// The log index of the entry.
    pub index: u64,
    /// The term in which the entry was proposed.
    pub term: u64,
    /// The content of the entry, as its bytes in the log.
    pub bytes: bytes::Bytes,
}

impl Consensus {
    /// Returns the vote saved in this member's log; `None` before the first vote.
    ///
    /// # Errors
    /// If the vote cannot be decoded.
    pub fn vote_kept(&self) -> storage::Result<Option<VoteSeen>> {
        let Some(bytes) = self.log.state().vote else { return Ok(None) };
        let vote: Vote = decode("vote", &bytes)?;
        Ok(Some(VoteSeen { term: vote.leader_id.term, candidate: vote.leader_id.voted_for }))
    }

    /// Returns the vote by which this member acts, which it has saved.
    pub fn vote_seen(&self) -> VoteSeen {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = &metrics.vote.leader_id;
        VoteSeen { term: leader.term, candidate: leader.voted_for }
    }

    /// Returns the entries of the log from the index `from` on.
    ///
    /// # Errors
    /// If an entry cannot be read.
    pub fn log_records(&self, from: u64) -> storage::Result<Vec<LogRecord>> {
        let records = self.log.read(from, u64::MAX, usize::MAX)?;
        let records = records.into_iter().map(|(index, bytes)| {
            let entry: RaftEntry = decode("log entry", &bytes)?;
            let term = entry.log_id().leader_id.term;
            Ok(LogRecord { index, term, bytes })
        });
        records.collect()
    }
}
