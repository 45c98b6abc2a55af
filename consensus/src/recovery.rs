//! Recovery of a cluster that has lost its majority for good: turns the data of one master into a cluster
//! of one. The master must not run. `master/node/src/recover.rs` asks the operator for confirmation and
//! calls this.
//!
//! No entry is thrown away. Two entries are appended to the log: the first raises the revisions, and its
//! index is the master's new id; the second makes that id the only member. The master's vote is set to
//! itself in a later term. So entries that no majority had yet become committed. The new id and a new
//! cluster id fence off the old members.
//!
//! A plan file is written first and removed last. While it exists the master refuses to start, and every
//! step can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::entry::RaftEntry as _;
use openraft::{EntryPayload, Membership};
use proto_env::{Disk, Env};
use serde::{Deserialize, Serialize};
use storage::codec::{decode, encode};
use storage::log::{self, Log};
use storage::{DataKey, Limits, Sealer, Store};
use tokio::sync::oneshot;

use crate::Error;
use crate::config::{IDENTITY_FILE, LOG_DIRECTORY, MemberIdentity, OBJECTS_DIRECTORY};
use crate::fence::{self, Fences};
use crate::raft_types::{Content, LogId, MasterAddress, Proposal, RaftEntry, Vote};
use crate::state_machine::decode_applied;
use crate::types::{Member, NodeId};

/// Number by which revisions are raised: more than a lost majority can have handed out beyond what this
/// master knows, and what etcd's documentation advises.
const RAISE: u64 = 1_000_000_000;
const PLAN_FILE: &str = "recovery.json";

/// What was found in the data directory.
#[derive(Debug, Clone)]
pub struct Found {
    /// The identity of this master.
    pub identity: MemberIdentity,
    /// Index of the last entry of the log.
    pub last_log_index: u64,
    /// Index of the last entry applied to the objects.
    pub applied_index: u64,
    /// Index of the last entry that this master knew to be on a majority.
    pub committed_index: u64,
    /// The last term this master knew.
    pub term: u64,
    /// Revision of the objects.
    pub revision: u64,
    /// Number of objects.
    pub objects: u64,
    /// All members this master knew.
    pub members: Vec<Member>,
    /// The sets of voters: one, or two in the middle of a membership change, when a decision needs a
    /// majority of each.
    pub voters: Vec<BTreeSet<NodeId>>,
}

/// The changes to make to a data directory, written before anything else changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The master's identity before the recovery.
    pub old: MemberIdentity,
    /// The master's identity after the recovery.
    pub new: MemberIdentity,
    /// The master's last known addresses; its first start announces the present ones.
    address: MasterAddress,
    /// The term of the two entries and of the vote.
    term: u64,
    /// Index of the first of the two entries, which is the master's new id.
    index: u64,
    /// Peer addresses of the other members, which are told that they are no members any more.
    tell: Vec<String>,
}

/// The data directory of a master that does not run, locked until this is dropped.
pub struct Recovery {
    data_dir: PathBuf,
    disk: Arc<dyn Disk>,
    // Holds the lock on the directory.
    _store: Arc<Store>,
    log: Arc<Log>,
    found: Found,
    begun: Option<Plan>,
}

/// Fails if a recovery was begun in this data directory and did not end.
pub(crate) fn check_none_begun(data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
    match fence::read::<Plan>(data_dir, PLAN_FILE, disk)? {
        None => Ok(()),
        Some(_) => Err(Error::Config(format!(
            "a recovery of {0} was begun and did not end: run `ephor recover --from-this-node --data-dir {0}` \
             again",
            data_dir.display()
        ))),
    }
}

// === impl Recovery ===

impl Recovery {
    /// Opens and locks the data directory of a master that does not run, and reads what is there.
    ///
    /// # Errors
    /// If the master runs, was never a member, was removed from its cluster or is damaged.
    pub fn open(data_dir: &Path, data_key: [u8; 32], env: &Env) -> Result<Self, Error> {
        let disk = env.disk.clone();
        fence::check_not_out(data_dir, disk.as_ref())?;
        let begun: Option<Plan> = fence::read(data_dir, PLAN_FILE, disk.as_ref())?;
        let identity = MemberIdentity::load(data_dir, disk.as_ref())?.ok_or_else(|| {
            Error::Config(format!("{} has never been a running master's", data_dir.display()))
        })?;
        for part in [LOG_DIRECTORY, OBJECTS_DIRECTORY] {
            if !disk.list(&data_dir.join(part)).is_ok_and(|names| !names.is_empty()) {
                return Err(Error::Config(format!("{} has lost its {part}", data_dir.display())));
            }
        }
        let key = DataKey::new(data_key);
        let store = Store::open(&data_dir.join(OBJECTS_DIRECTORY), &key, env, Limits::default());
        let store = store.map_err(|error| match error.to_string() {
            // sled reports a lock held by another process only in the error's text.
            text if text.contains("could not acquire lock") => Error::Config(format!(
                "the master of {} is running: stop it first, so that it promises nothing any more",
                data_dir.display()
            )),
            _ => Error::Storage(error),
        })?;
        let sealer = Sealer::new(&key, "log", env.random.clone());
        let log = Log::open(&data_dir.join(LOG_DIRECTORY), sealer, disk.clone(), log::Options::default())?;
        let found = look(identity, &store, &log)?;
        Ok(Self { data_dir: data_dir.to_owned(), disk, _store: store, log, found, begun })
    }

    /// Returns what was found in the data directory.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Returns the plan of an earlier attempt that did not end; it is the one to continue.
    pub fn begun(&self) -> Option<&Plan> {
        self.begun.as_ref()
    }

    /// Makes a plan for a new cluster of this id.
    ///
    /// # Errors
    /// If this master was no member.
    pub fn plan(&self, cluster_id: String) -> Result<Plan, Error> {
        let found = &self.found;
        let me = found.members.iter().find(|member| member.id == found.identity.node_id);
        let me = me.ok_or_else(|| {
            Error::Config(format!(
                "{} knows itself as no member of its cluster: recover from another master",
                self.data_dir.display()
            ))
        })?;
        let index = found.last_log_index + 1;
        let others = found.members.iter().filter(|member| member.id != me.id);
        Ok(Plan {
            old: found.identity.clone(),
            new: MemberIdentity { node_id: index, cluster_id },
            address: MasterAddress {
                name: me.name.clone(),
                peer_address: me.peer_address.clone(),
                api_address: me.api_address.clone(),
                replaces: 0,
            },
            term: found.term + 1,
            index,
            tell: others.map(|member| member.peer_address.clone()).collect(),
        })
    }

    /// Carries out a plan except for its end ([`Recovery::finish`]), because the caller has an identity of
    /// its own to change before that. It can be repeated.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub async fn rewrite(&self, plan: &Plan) -> Result<(), Error> {
        let disk = self.disk.as_ref();
        fence::write(&self.data_dir, PLAN_FILE, plan, disk)?;
        self.extend_log(plan).await?;
        let mut fences = Fences::load(&self.data_dir, disk)?;
        if !fences.supersedes.contains(&plan.old.cluster_id) {
            fences.supersedes.push(plan.old.cluster_id.clone());
        }
        fences.tell.clone_from(&plan.tell);
        fences.store(&self.data_dir, disk)?;
        fence::write(&self.data_dir, IDENTITY_FILE, &plan.new, disk)
    }

    /// Removes the plan file once the plan was carried out: the master may start.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn finish(&self) -> Result<(), Error> {
        let path = self.data_dir.join(PLAN_FILE);
        self.disk.remove(&path).map_err(|error| Error::Config(format!("{}: {error}", path.display())))
    }

    async fn extend_log(&self, plan: &Plan) -> Result<(), Error> {
        // Remove the entries, whole or torn, that an earlier attempt appended.
        if self.log.state().last.is_some_and(|last| last >= plan.index) {
            self.written(|done| self.log.truncate_after(Some(plan.index - 1), done)).await?;
        }
        let voters = vec![BTreeSet::from([plan.new.node_id])];
        let nodes = BTreeMap::from([(plan.new.node_id, plan.address.clone())]);
        let members = Membership::new(voters, nodes).map_err(|error| Error::Raft(error.to_string()))?;
        let payloads = [
            EntryPayload::Normal(Proposal::encode(&Content::Recovered(RAISE))?),
            EntryPayload::Membership(members),
        ];
        let mut records = Vec::new();
        for (index, payload) in (plan.index..).zip(payloads) {
            let entry = RaftEntry::new(LogId::new_term_index(plan.term, index), payload);
            records.push((index, Bytes::from(encode("log entry", &entry)?)));
        }
        self.written(|done| self.log.append(records, done)).await?;
        let vote = encode("vote", &Vote::new(plan.term, plan.new.node_id))?;
        self.written(|done| self.log.save_vote(vote, done)).await
    }

    async fn written(&self, write: impl FnOnce(log::Done)) -> Result<(), Error> {
        let (sender, receiver) = oneshot::channel();
        write(Box::new(move |result| drop(sender.send(result))));
        let result = receiver.await.map_err(|_| Error::Config("the log has stopped".to_owned()))?;
        result.map_err(|error| {
            Error::Config(format!("writing the log of {}: {error}", self.data_dir.display()))
        })
    }
}

fn look(identity: MemberIdentity, store: &Store, log: &Log) -> Result<Found, Error> {
    let state = log.state();
    let (applied, stored) = decode_applied(&store.applied())?;
    let applied_index = applied.map_or(0, |applied: LogId| applied.index);
    let purged = state.purged.as_ref().map_or(0, |(index, _)| *index);
    let last_log_index = state.last.unwrap_or(purged).max(purged);
    if last_log_index < applied_index {
        return Err(Error::Config(format!(
            "the objects contain entry {applied_index} and the log ends at {last_log_index}: this data \
             directory is damaged; recover from another master or restore a backup"
        )));
    }
    let mut members = stored.membership().clone();
    let mut term = applied.map_or(0, |applied| applied.leader_id.term);
    // An entry's size is bounded, and only one is held in memory at a time.
    for index in applied_index + 1..=last_log_index {
        for (_, bytes) in log.read(index, index + 1, 1)? {
            let entry: RaftEntry = decode("log entry", &bytes)?;
            term = term.max(entry.log_id().leader_id.term);
            if let EntryPayload::Membership(changed) = entry.payload {
                members = changed;
            }
        }
    }
    if let Some(vote) = &state.vote {
        let vote: Vote = decode("vote", vote)?;
        term = term.max(vote.leader_id.term);
    }
    let committed: Option<LogId> =
        state.committed.as_ref().map(|bytes| decode("log id", bytes)).transpose()?;
    let voters = members.get_joint_config().clone();
    let member = |(id, info): (&NodeId, &MasterAddress)| Member {
        id: *id,
        name: info.name.clone(),
        peer_address: info.peer_address.clone(),
        api_address: info.api_address.clone(),
        voter: voters.iter().any(|set| set.contains(id)),
        leader: false,
        replaces: info.replaces,
    };
    Ok(Found {
        identity,
        last_log_index,
        applied_index,
        committed_index: committed.map_or(0, |id| id.index).max(applied_index),
        term,
        revision: store.revision(),
        objects: store.len() as u64,
        members: members.nodes().map(member).collect(),
        voters: voters.clone(),
    })
}
