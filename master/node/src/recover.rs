//! Recovery after a majority of masters was lost for good: reads the data
//! directory of a surviving master, asks the other masters whether they are really
//! gone, and makes a cluster with this master as its only member. `ops/cli` shows
//! the findings and asks for confirmation; `consensus/src/recovery.rs` rewrites the log.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consensus::recovery::{Found, Recovery};
use consensus::{Member, MemberIdentity, NodeId};
use futures::future::join_all;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{Env, MASTERS_ORGANIZATION, Purpose, TlsMaterial};
use proto_wire::cluster::MembersRequest;
use proto_wire::cluster::admin_client::AdminClient;

use crate::identity::{self, keys_of};
use crate::pki::{self, Subject, Usage, Validity};

/// Deadline for another master to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Lifetime of the certificate used to ask the others; a recovery that takes longer is run again.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The master at an address and the id of its cluster; or why nobody answered.
type Answer = Result<(NodeId, String), String>;

/// Why a recovery was refused or failed; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory does not belong to a master, or its master is running.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// Keys or identity cannot be read or written.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Certificates cannot be made.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The TLS material for asking the other masters cannot be used.
    #[error("certificates: {0}")]
    Tls(#[from] proto_env::TlsError),
    /// The masters that answer are a majority, so nothing is lost.
    #[error(
        "refused: {answered} of the {voters} voting masters answer{names}, and with this one they are a \
         majority: nothing is lost; start this master again"
    )]
    QuorumReachable {
        /// Number of masters that answered.
        answered: usize,
        /// Number of voters.
        voters: usize,
        /// Names of the masters that answered, in brackets.
        names: String,
    },
}

/// Result of asking one of the other masters.
#[derive(Debug, Clone)]
pub struct MasterReply {
    /// The member that was asked.
    pub member: Member,
    /// Whether the master answered with its id and its cluster's id.
    pub answered: bool,
    /// Error of a call that was not answered; empty if it was.
    pub error: String,
}

/// The opened data directory of the surviving master.
pub struct Survivor {
    data_dir: PathBuf,
    recovery: Recovery,
    env: Env,
}

impl Survivor {
    /// Opens the data directory of a master that is not running. `env`'s network needs no certificates yet.
    ///
    /// # Errors
    /// Fails if the directory is not that of a complete master, or its master is running.
    pub fn open(data_dir: &Path, env: Env) -> Result<Self, Error> {
        if crate::backup::unfinished(data_dir, env.disk.as_ref()) {
            return Err(identity::Error::Restoring(data_dir.to_owned()).into());
        }
        let keys = keys_of(data_dir, env.disk.clone())?;
        let subject = Subject::new("ephor-recover", MASTERS_ORGANIZATION);
        let validity = Validity::new(env.clock.now(), CERTIFICATE_LIFETIME);
        let issued = keys.authority.issue(&subject, &[], Usage::Peer, validity)?;
        env.network.set_material(&TlsMaterial {
            ca_pem: keys.authority.certificate_pem().to_owned(),
            certificate_pem: issued.chain_pem,
            key_pem: issued.key_pem,
        })?;
        let recovery = Recovery::open(data_dir, *keys.data_key, &env)?;
        Ok(Self { data_dir: data_dir.to_owned(), recovery, env })
    }

    /// Returns what the data directory says of the cluster.
    pub fn found(&self) -> &Found {
        self.recovery.found()
    }

    /// Whether an earlier recovery was begun and not finished.
    pub fn begun(&self) -> bool {
        self.recovery.begun().is_some()
    }

    /// Asks all other members, at their known addresses and at those in `elsewhere`, and refuses the
    /// recovery when those that answer form a majority together with this master.
    ///
    /// # Errors
    /// [`Error::QuorumReachable`].
    pub async fn ask(&self, elsewhere: &[String]) -> Result<Vec<MasterReply>, Error> {
        let found = self.recovery.found();
        if self.begun() {
            // An earlier attempt has already rewritten the log, so the recovery must go on.
            return Ok(Vec::new());
        }
        let me = found.identity.node_id;
        let others: Vec<&Member> = found.members.iter().filter(|member| member.id != me).collect();
        let known = others.iter().map(|member| member.peer_address.clone());
        let addresses: BTreeSet<String> = known.chain(elsewhere.iter().cloned()).collect();
        let answers = join_all(addresses.iter().map(|address| self.who(address))).await;
        let answers: Vec<(&String, Answer)> = addresses.iter().zip(answers).collect();
        let is = |member: &Member| {
            let mine = |(_, answer): &(_, Answer)| {
                answer
                    .as_ref()
                    .is_ok_and(|(id, cluster)| *id == member.id && *cluster == found.identity.cluster_id)
            };
            answers.iter().any(mine)
        };
        let asked: Vec<MasterReply> = others
            .into_iter()
            .map(|member| {
                let at = answers.iter().find(|(address, _)| **address == member.peer_address);
                let error = match at {
                    Some((_, Ok((id, cluster)))) => format!("master {id} of cluster {cluster} is there"),
                    Some((_, Err(error))) => error.clone(),
                    None => "not asked".to_owned(),
                };
                MasterReply { answered: is(member), member: member.clone(), error }
            })
            .collect();
        refuse_quorum(&found.voters, me, &asked)?;
        Ok(asked)
    }

    /// Asks which master of which cluster is at an address.
    async fn who(&self, address: &str) -> Answer {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: ASK_TIMEOUT,
        };
        let channel =
            channel(self.env.network.clone(), address, options).map_err(|error| error.to_string())?;
        let mut request = tonic::Request::new(MembersRequest { local: true });
        request.set_timeout(ASK_TIMEOUT);
        let mut client = AdminClient::new(channel);
        match tokio::time::timeout(ASK_TIMEOUT, client.members(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                Ok((answer.node_id, answer.cluster_id))
            }
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Makes a cluster of this master alone and returns its new identity. May be run again after an
    /// interruption.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub async fn recover(&self) -> Result<MemberIdentity, Error> {
        let plan = match self.recovery.begun() {
            Some(plan) => plan.clone(),
            None => {
                let mut id = [0; 16];
                self.env.random.fill(&mut id);
                self.recovery.plan(uuid::Builder::from_random_bytes(id).into_uuid().to_string())?
            }
        };
        self.recovery.rewrite(&plan).await?;
        identity::rename(&self.data_dir, self.env.disk.as_ref(), &plan.new)?;
        self.recovery.finish()?;
        Ok(plan.new)
    }
}

/// Refuses the recovery when the masters that answer have, with `me`, a majority in every set of voters.
fn refuse_quorum(voters: &[BTreeSet<NodeId>], me: NodeId, asked: &[MasterReply]) -> Result<(), Error> {
    let answered: BTreeSet<NodeId> = asked.iter().filter(|a| a.answered).map(|a| a.member.id).collect();
    let majority = |set: &BTreeSet<NodeId>| {
        let there = set.iter().filter(|id| **id == me || answered.contains(id)).count();
        there * 2 > set.len()
    };
    if !voters.iter().all(majority) {
        return Ok(());
    }
    let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
    let voting: Vec<&MasterReply> =
        asked.iter().filter(|a| a.answered && all.contains(&a.member.id)).collect();
    let names: Vec<&str> = voting.iter().map(|a| a.member.name.as_str()).collect();
    Err(Error::QuorumReachable {
        answered: voting.len(),
        voters: all.len(),
        names: if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: NodeId, answered: bool) -> MasterReply {
        let member = Member {
            id,
            name: format!("m{id}"),
            peer_address: String::new(),
            api_address: String::new(),
            voter: true,
            leader: false,
            replaces: 0,
        };
        MasterReply { member, answered, error: String::new() }
    }

    fn refused(voters: &[&[NodeId]], answered: &[NodeId]) -> bool {
        let voters: Vec<BTreeSet<NodeId>> = voters.iter().map(|set| set.iter().copied().collect()).collect();
        let others: BTreeSet<NodeId> = voters.iter().flatten().copied().filter(|id| *id != 1).collect();
        let asked: Vec<MasterReply> = others.iter().map(|id| asked(*id, answered.contains(id))).collect();
        refuse_quorum(&voters, 1, &asked).is_err()
    }

    #[test]
    fn a_majority_that_is_there_is_never_overruled() {
        assert!(!refused(&[&[1, 2, 3]], &[]));
        assert!(refused(&[&[1, 2, 3]], &[2]));
        assert!(!refused(&[&[1, 2, 3, 4, 5]], &[2]));
        assert!(refused(&[&[1, 2, 3, 4, 5]], &[2, 5]));
        // A majority without this one.
        assert!(refused(&[&[2, 3, 4]], &[2, 3]));
        // In the middle of a change both sets decide.
        assert!(!refused(&[&[1, 2, 3], &[1, 4, 5]], &[2]));
        assert!(refused(&[&[1, 2, 3], &[1, 4, 5]], &[2, 4]));
        // A cluster of one has lost nothing.
        assert!(refused(&[&[1]], &[]));
    }
}
