//! What lies inside a member, for who must judge it from outside: its vote and its
//! log as they are now. The simulation's checks ask; nothing that runs depends on it.

use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::RaftEntry as _;
use storage::codec::decode;

use crate::consensus::Consensus;
use crate::raft_types::{RaftEntry, Vote};
use crate::types::NodeId;

/// For whom a member voted last, or whom it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteSeen {
    /// In this term.
    pub term: u64,
    /// For this member.
    pub candidate: NodeId,
}

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it is.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// What it says, as its bytes in the log.
    pub bytes: bytes::Bytes,
}

impl Consensus {
    /// The vote that lies in its log; none before the first.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn vote_kept(&self) -> storage::Result<Option<VoteSeen>> {
        let Some(bytes) = self.log.state().vote else { return Ok(None) };
        let vote: Vote = decode("vote", &bytes)?;
        Ok(Some(VoteSeen { term: vote.leader_id.term, candidate: vote.leader_id.voted_for }))
    }

    /// The vote by which this member acts, once it has saved it.
    pub fn vote_seen(&self) -> VoteSeen {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = &metrics.vote.leader_id;
        VoteSeen { term: leader.term, candidate: leader.voted_for }
    }

    /// The entries of the log from `from` on.
    ///
    /// # Errors
    /// Where one cannot be read.
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
