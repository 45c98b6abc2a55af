//! Backup and restore: a view of the state for a backup, and the data directory of the only member of the
//! cluster that a backup is restored into. That member starts as if it had installed a snapshot and purged
//! its log up to there; others join it as usual. `master/node/src/backup` calls both.

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
    /// The view of the state.
    pub view: SnapshotView,
    /// The log index of the last entry applied.
    pub applied_index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Why no quorum confirmed that this is the newest state; `None` if one did.
    pub stale: Option<String>,
}

/// The master and cluster that a backup is restored for.
#[derive(Clone)]
pub struct RestoreTarget {
    /// Directory in which log, objects and identity are made; none of them may exist.
    pub data_dir: PathBuf,
    /// The id of the new cluster, which keeps members of the old cluster out.
    pub cluster_id: String,
    /// The data key, which encrypts log and objects.
    pub data_key: [u8; 32],
    /// The member's name and addresses; empty addresses are announced when the member starts.
    pub address: MasterAddress,
}

/// A restore in progress.
pub struct Restore {
    target: RestoreTarget,
    objects: Restoring,
    env: Env,
}

/// The result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The id of the new cluster's only member, higher than all ids of the old cluster.
    pub node_id: NodeId,
    /// The revision of the backup.
    pub revision_before: u64,
    /// The revision the new cluster begins with.
    pub revision: u64,
    /// Number of objects.
    pub objects: u64,
}

impl Consensus {
    /// Takes a view of the present state: with every write acknowledged before the call if a quorum
    /// confirms that within `deadline`, otherwise with what this master has.
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
    /// Begins a restore into an empty data directory. Blocks, like all functions of this type.
    pub fn begin(target: RestoreTarget, env: Env) -> Result<Self, Error> {
        let key = DataKey::new(target.data_key);
        let objects = Restoring::begin(&target.data_dir.join(OBJECTS_DIRECTORY), &key, &env)?;
        Ok(Self { target, objects, env })
    }

    /// Adds the next frame of the snapshot.
    pub fn push(&mut self, frame: &[u8]) -> Result<(), Error> {
        Ok(self.objects.push(frame)?)
    }

    /// Writes log and identity. The state continues `bump` revisions later, one log entry and one term
    /// after the backup's last entry. That entry is the restore itself, and its index is the member's id:
    /// no master known to the backup had that id, and no new master will get it.
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

/// Makes a membership of one voter, whose id is the index of the entry that made it.
fn only_member(at: LogId, address: &MasterAddress) -> storage::Result<StoredMembership> {
    let nodes = BTreeMap::from([(at.index, address.clone())]);
    let membership = Membership::new(vec![BTreeSet::from([at.index])], nodes);
    let membership = membership
        .map_err(|error| storage::Error::Damaged { what: "membership", reason: error.to_string() })?;
    Ok(StoredMembership::new(Some(at), membership))
}

/// Writes a log that was purged up to `at`, with a vote of that term, so that the next leader's term is
/// higher than every term of the backup.
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
