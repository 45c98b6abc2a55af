//! Out of a cluster and into a new one: a view of the state for a backup, and the
//! files of the only member of the cluster that a backup is restored into. The
//! member starts as if it had installed a snapshot and purged its log up to
//! there; others join it as usual. `master/node/src/backup` calls both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use openraft::Membership;
use openraft::type_config::alias::CommittedLeaderIdOf;
use proto_env::Env;
use storage::codec::encode;
use storage::log::{self, Done, Log};
use storage::{DataKey, Restoring, Sealer, SnapshotView};

use crate::config::{LOG_DIRECTORY, MemberIdentity, OBJECTS_DIRECTORY};
use crate::consensus::Consensus;
use crate::raft_types::{LogId, MasterAddress, StoredMembership, TypeConfig, Vote};
use crate::state_machine::decode_applied;
use crate::types::NodeId;
use crate::{Error, FIRST_NODE_ID};

/// The state of this master at one applied log entry.
pub struct BackupView {
    /// The state.
    pub view: SnapshotView,
    /// The log index of the last entry applied.
    pub applied_index: u64,
    /// The term of that entry.
    pub term: u64,
    /// No quorum confirmed that this is the newest state, and why.
    pub stale: Option<String>,
}

/// Whom a backup is restored for.
#[derive(Clone)]
pub struct RestoreTarget {
    /// Where log, objects and identity are made; nothing of them may be there.
    pub data_dir: PathBuf,
    /// The id of the new cluster, which keeps members of the old one out.
    pub cluster_id: String,
    /// Encrypts log and objects.
    pub data_key: [u8; 32],
    /// The member; the addresses may be empty, it says them when it starts.
    pub address: MasterAddress,
}

/// A member in the making.
pub struct Restore {
    target: RestoreTarget,
    objects: Restoring,
    env: Env,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The only member of the new cluster: above all ids of the old one.
    pub node_id: NodeId,
    /// The revision the backup was of.
    pub revision_before: u64,
    /// The revision the new cluster begins with.
    pub revision: u64,
    /// How many objects there are.
    pub objects: u64,
}

impl Consensus {
    /// The state as of now: with every write acknowledged before the call when a
    /// quorum says so within `deadline`, otherwise what this master has.
    pub async fn backup_view(&self, deadline: Duration) -> Result<BackupView, Error> {
        let stale = self.read_barrier(deadline).await.err().map(|error| error.to_string());
        let store = self.store.clone();
        let view = self.env.blocking.run(move || store.view()).await;
        let view = view.map_err(|error| Error::Raft(error.to_string()))?;
        let (last, _) = decode_applied(view.applied())?;
        let last = last.ok_or_else(|| Error::Config("this master has no state yet".to_owned()))?;
        Ok(BackupView { view, applied_index: last.index, term: last.leader_id.term, stale })
    }
}

impl Restore {
    /// Begins a member in an empty data directory. Blocks, like everything here.
    pub fn begin(target: RestoreTarget, env: Env) -> Result<Self, Error> {
        let key = DataKey::new(target.data_key);
        let objects = Restoring::begin(&target.data_dir.join(OBJECTS_DIRECTORY), &key, &env)?;
        Ok(Self { target, objects, env })
    }

    /// Takes the next frame of the snapshot.
    pub fn push(&mut self, frame: &[u8]) -> Result<(), Error> {
        Ok(self.objects.push(frame)?)
    }

    /// Writes what is left: the state goes on `bump` revisions later, one log
    /// entry and one term after the one that the backup was of. That entry is
    /// the restore itself, and its index the id of the member: no master of the
    /// old cluster that the backup knows had it, and none of the new one gets it.
    pub fn finish(self, bump: u64) -> Result<Restored, Error> {
        let Self { target, objects, env } = self;
        let mut place = None;
        let mut revision = 0;
        let checked = objects.finish(|checked| {
            let (last, membership) = decode_applied(&checked.applied)?;
            let ids = membership.membership().nodes().map(|(id, _)| *id);
            let greatest = ids.max().unwrap_or(FIRST_NODE_ID).max(last.map_or(0, |last| last.index));
            let term = last.map_or(0, |last| last.leader_id.term) + 1;
            let at = LogId { leader_id: CommittedLeaderIdOf::<TypeConfig>::from(term), index: greatest + 1 };
            place = Some(at);
            revision = checked.revision + bump;
            let only = only_member(at, &target.address)?;
            Ok((revision, at.index, encode("applied state", &(Some(at), only))?))
        })?;
        let at = place.ok_or_else(|| Error::Config("the snapshot says no log entry".to_owned()))?;
        write_log(&target, at, &env)?;
        let identity = MemberIdentity { node_id: at.index, cluster_id: target.cluster_id };
        identity.claim(&target.data_dir, env.disk.as_ref())?;
        let objects = checked.objects;
        Ok(Restored { node_id: at.index, revision_before: checked.revision, revision, objects })
    }
}

/// A membership of one voter, whose id is the index of the entry that made it.
fn only_member(at: LogId, address: &MasterAddress) -> storage::Result<StoredMembership> {
    let nodes = BTreeMap::from([(at.index, address.clone())]);
    let membership = Membership::new(vec![BTreeSet::from([at.index])], nodes);
    let membership = membership
        .map_err(|error| storage::Error::Damaged { what: "membership", reason: error.to_string() })?;
    Ok(StoredMembership::new(Some(at), membership))
}

/// A log that was purged up to `at`, with a vote of that term: the next leader's
/// term is above every one of the backup.
fn write_log(target: &RestoreTarget, at: LogId, env: &Env) -> Result<(), Error> {
    let sealer = Sealer::new(&DataKey::new(target.data_key), "log", env.random.clone());
    let options = log::Options { inline: true, ..log::Options::default() };
    let log = Log::open(&target.data_dir.join(LOG_DIRECTORY), sealer, env.disk.clone(), options)?;
    let vote = encode("vote", &Vote::new(at.leader_id.term, at.index))?;
    written(|done| log.save_vote(vote, done))?;
    let id = encode("log id", &at)?;
    written(|done| log.purge(at.index, id, done))
}

/// Waits for a write of a log that writes within the caller.
fn written(write: impl FnOnce(Done)) -> Result<(), Error> {
    let (sender, receiver) = sync_channel(1);
    write(Box::new(move |result| drop(sender.send(result))));
    let result = receiver.recv().unwrap_or_else(|_| Err(std::io::Error::other("the log has stopped")));
    result.map_err(|source| Error::Storage(storage::Error::Io { doing: "writing the log", source }))
}
