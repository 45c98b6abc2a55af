//! Proposals from any master: they go to the local queue if this master leads, otherwise over the network
//! to the leader. They are resent with the same id when the leader changes, until the deadline; the id
//! makes a resend harmless.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto_env::supervise::catch;
use proto_env::{CancellationToken, PriorityRuntime};
use storage::{Applied, Command, Txn, TxnOutcome};
use tokio::time::Instant;

use crate::consensus::{Consensus, until};
use crate::forward::Forward;
use crate::membership::address_of;
use crate::network::{Peers, lock};
use crate::preference::Gathered;
use crate::proposer::{Arrival, Destination, Proposer, Verdict};
use crate::raft_types::Raft;
use crate::types::{NodeId, ProposeError, ProposeOptions};

/// Pause before the same leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Time that the local replica has after the leader's answer to apply the entry.
const APPLY_GRACE: Duration = Duration::from_secs(2);

/// The proposals of one master: a queue for its own log, and one for another leader.
pub(crate) struct Proposals {
    peers: Arc<Peers>,
    runtime: Arc<PriorityRuntime>,
    stop: CancellationToken,
    gathered: Gathered,
    /// The queue for the log of this master.
    pub(crate) local: Proposer,
    /// The queue for the leader if another master leads; `None` until it is first needed.
    remote: Mutex<Option<(Forward, Proposer)>>,
}

impl Proposals {
    /// Makes the proposals of a master, and the future that serves its own queue, which is to be spawned.
    pub(crate) fn new(
        raft: Raft,
        peers: Arc<Peers>,
        runtime: Arc<PriorityRuntime>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let gathered = Gathered::default();
        let (local, working) = Proposer::new(Destination::Log(raft), gathered.clone());
        (Self { peers, runtime, stop, gathered, local, remote: Mutex::default() }, working)
    }

    /// Returns the count of this master's proposals and batches.
    pub(crate) fn gathered(&self) -> Gathered {
        self.gathered.clone()
    }

    /// Returns the queue for another master that leads. The queue of an earlier leader ends once nobody
    /// waits in it.
    fn towards(&self, leader: NodeId, address: String) -> Proposer {
        let mut remote = lock(&self.remote);
        if let Some((forward, proposer)) = &*remote
            && (forward.leader, &forward.address) == (leader, &address)
            && !proposer.has_ended()
        {
            return proposer.clone();
        }
        let forward = Forward::new(self.peers.clone(), leader, address);
        let (proposer, forwarding) =
            Proposer::new(Destination::Leader(forward.clone()), self.gathered.clone());
        let forwarding = until(self.stop.clone(), forwarding);
        // Gathers proposals, like the queue of this master (`consensus.rs`).
        self.runtime.main().spawn(async move {
            // After a panic, which was counted and logged, the next proposal makes another queue.
            drop(catch("forwarded proposals", forwarding).await);
        });
        *remote = Some((forward, proposer.clone()));
        proposer
    }
}

impl Consensus {
    /// Proposes a transaction, on any master, and waits for its outcome. On `Ok` the local store has
    /// applied it.
    pub async fn propose(&self, txn: Txn, options: ProposeOptions) -> Result<TxnOutcome, ProposeError> {
        let mut id = [0; 16];
        self.env.random.fill(&mut id);
        let born = *self.applied_index.borrow();
        let command = Command { id, born, fence: options.fence, txn };
        let end = Instant::now() + options.deadline;
        let mut leadership = self.leadership.subscribe();
        let mut unknown: Option<String> = None;
        let mut refused = "no leader is known".to_owned();
        loop {
            if self.stop.is_cancelled() {
                return Err(match unknown {
                    Some(reason) => ProposeError::Unknown { reason },
                    None => ProposeError::Stopped,
                });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(match unknown {
                    Some(reason) => ProposeError::Unknown { reason },
                    None => ProposeError::NotEntered { reason: refused },
                });
            }
            let leader = leadership.borrow_and_update().leader;
            let changed = async {
                // When the leader changes, this attempt may never be answered.
                while leadership.changed().await.is_ok() {
                    if leadership.borrow_and_update().leader != leader {
                        return;
                    }
                }
            };
            let Some(to) = leader else {
                let _ = tokio::time::timeout(left, changed).await;
                continue;
            };
            let verdict = tokio::select! {
                biased;
                verdict = self.propose_to(to, &command, left) => verdict,
                () = changed => Verdict::Unknown("the leader changed".to_owned()),
                () = self.stop.cancelled() => Verdict::Unknown("this master is stopping".to_owned()),
            };
            match verdict {
                Verdict::Applied { applied: Applied::Outcome(outcome), index } => {
                    self.applied_here(index, left.max(APPLY_GRACE)).await?;
                    return Ok(outcome);
                }
                Verdict::Applied { applied: Applied::Forgotten, .. } => {
                    let reason = unknown.unwrap_or_else(|| "the proposal is too old".to_owned());
                    return Err(ProposeError::Unknown { reason });
                }
                Verdict::NotEntered(reason) => refused = reason,
                Verdict::Unknown(reason) => unknown = Some(reason),
                // An earlier attempt may have entered the log all the same.
                Verdict::NoRoom(_) | Verdict::Overloaded(_) if unknown.is_some() => {
                    return Err(ProposeError::Unknown { reason: unknown.unwrap_or_default() });
                }
                Verdict::NoRoom(reason) => return Err(ProposeError::NoRoom { reason }),
                Verdict::Overloaded(reason) => return Err(ProposeError::Overloaded { reason }),
            }
            if leadership.borrow().leader == Some(to) {
                tokio::time::sleep(RETRY_PAUSE.min(left)).await;
            }
        }
    }

    /// Proposes a command as the leader, unless this master has to refuse it.
    pub(crate) async fn propose_here(
        &self,
        command: Command,
        arrival: Arrival,
        deadline: Duration,
    ) -> Verdict {
        if let Some(reason) = self.quarantined() {
            return Verdict::NotEntered(reason);
        }
        if let Some(reason) = self.no_room_for(&command.txn) {
            return Verdict::NoRoom(reason);
        }
        // Without a quorum every proposal waits, and is accepted once there is a quorum again.
        if self.leadership.borrow().leading
            && let Some(reason) = self.proposals.local.overload()
        {
            return Verdict::Overloaded(reason);
        }
        self.proposals.local.propose(command, arrival, deadline).await
    }

    async fn propose_to(&self, leader: NodeId, command: &Command, deadline: Duration) -> Verdict {
        if leader == self.node_id {
            return self.propose_here(command.clone(), Arrival::Single, deadline).await;
        }
        match address_of(&self.raft, leader) {
            Some(address) => {
                let proposer = self.proposals.towards(leader, address);
                proposer.propose(command.clone(), Arrival::Single, deadline).await
            }
            None => Verdict::NotEntered(format!("the address of master {leader} is not known")),
        }
    }

    async fn applied_here(&self, index: u64, deadline: Duration) -> Result<(), ProposeError> {
        let mut applied = self.applied_index.clone();
        let wait = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout(deadline, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ProposeError::Unknown {
                reason: "the leader applied the write, this master has not yet".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto_env::{Env, TlsNetwork};
    use storage::Txn;

    use super::*;
    use crate::testing::lone_master;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_queue_to_the_leader_that_has_ended_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
        let master = lone_master(directory.path(), &env).await.unwrap();
        let proposals = &master.proposals;
        let address = "127.0.0.1:1".to_owned();
        let forward = Forward::new(proposals.peers.clone(), 7, address.clone());
        let (ended, _) = Proposer::new(Destination::Leader(forward.clone()), Gathered::default());
        assert!(ended.has_ended());
        *lock(&proposals.remote) = Some((forward, ended));
        let proposer = proposals.towards(7, address.clone());
        assert!(!proposer.has_ended());
        let command = Command { id: [1; 16], born: 0, fence: None, txn: Txn::default() };
        let verdict = proposer.propose(command, Arrival::Single, Duration::from_secs(5)).await;
        assert!(!matches!(&verdict, Verdict::NotEntered(why) if why.contains("stopping")), "{verdict:?}");
        master.shutdown().await;
    }
}
