//! The types openraft is instantiated with. Terms have at most one leader
//! (`leader_id_std`), which fencing by term relies on.

use std::fmt;

use bytes::Bytes;
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};
use storage::{Applied, Command, SnapshotView, Staged, codec};

use crate::state_machine::StateMachine;
use crate::types::NodeId;

openraft::declare_raft_types!(
    /// The types of Ephor's openraft instance.
    pub TypeConfig:
        D = Proposal,
        R = EntryResults,
        NodeId = u64,
        Node = MasterAddress,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
pub(crate) type RaftEntry = <TypeConfig as openraft::RaftTypeConfig>::Entry;

/// A master's name and addresses, as the membership stores them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MasterAddress {
    /// The master's name.
    pub name: String,
    /// `HOST:PORT` of its peer port.
    pub peer_address: String,
    /// `HOST:PORT` of its API port.
    pub api_address: String,
    /// The id of the voter that the master joined to replace; 0: none.
    #[serde(default)]
    pub replaces: NodeId,
}

/// The content of a log entry, encoded once: the same bytes go to the log and to every follower.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    encoded: Bytes,
}

/// The decoded content of a [`Proposal`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Content {
    /// Transactions that share one entry.
    Commands(Vec<Command>),
    /// No content: the entry's index becomes the id of a new master.
    NewNodeId,
    /// A new cluster begins with the state of one master of a lost cluster: revisions are raised by this
    /// number, so that no revision is handed out twice.
    Recovered(u64),
}

/// The result of each command of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntryResults {
    pub(crate) results: Vec<Applied>,
}

/// A snapshot: either taken on this master, or received and staged.
pub enum SnapshotData {
    /// A view of the local store.
    View(SnapshotView),
    /// A received state that waits to be installed.
    Staged(Box<Staged>),
}

impl Proposal {
    pub(crate) fn encode(content: &Content) -> storage::Result<Self> {
        Ok(Self { encoded: codec::encode("proposal", content)?.into() })
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.encoded.len()
    }

    pub(crate) fn decode(&self) -> storage::Result<Content> {
        codec::decode("proposal", &self.encoded)
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.encoded.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::View(view) => write!(f, "View(revision {})", view.revision()),
            Self::Staged(staged) => write!(f, "Staged(revision {})", staged.revision()),
        }
    }
}
