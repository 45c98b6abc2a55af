//! Proposing from any master: to the local queue when this one leads, else over
//! the network to whoever does, and again, with the same id, when the leader
//! changes, until the deadline. The id makes the resend harmless.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto_env::{CancellationToken, PriorityRuntime};
use storage::{Applied, Command, Txn, TxnOutcome};
use tokio::time::Instant;

use crate::consensus::{Consensus, until};
use crate::forward::Forward;
use crate::network::{Peers, lock};
use crate::proposer::{Destination, Proposer, Verdict};
use crate::raft_types::Raft;
use crate::types::{NodeId, ProposeError, ProposeOptions};

/// Pause before the same leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long after the leader's answer the local replica may take to apply.
const APPLY_GRACE: Duration = Duration::from_secs(2);

/// The proposals of one master: a queue into its own log, and one towards whoever else leads.
pub(crate) struct Proposals {
    peers: Arc<Peers>,
    runtime: Arc<PriorityRuntime>,
    stop: CancellationToken,
    /// Into the log of this master.
    pub(crate) local: Proposer,
    /// Towards the leader, where another one leads.
    remote: Mutex<Option<(Forward, Proposer)>>,
}

impl Proposals {
    /// The proposals of a master, and the work of its own queue, which is to be spawned.
    pub(crate) fn new(
        raft: Raft,
        peers: Arc<Peers>,
        runtime: Arc<PriorityRuntime>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (local, working) = Proposer::new(Destination::Log(raft));
        (Self { peers, runtime, stop, local, remote: Mutex::default() }, working)
    }

    /// The queue of proposals for another master that leads; that of an earlier leader ends when nobody waits in
    /// it any more.
    fn towards(&self, leader: NodeId, address: String) -> Proposer {
        let mut remote = lock(&self.remote);
        if let Some((forward, proposer)) = &*remote
            && (forward.leader, &forward.address) == (leader, &address)
        {
            return proposer.clone();
        }
        let forward = Forward::new(self.peers.clone(), leader, address);
        let (proposer, forwarding) = Proposer::new(Destination::Leader(forward.clone()));
        self.runtime.spawn(until(self.stop.clone(), forwarding));
        *remote = Some((forward, proposer.clone()));
        proposer
    }
}

impl Consensus {
    /// Proposes a transaction and waits for its outcome. Any master will do. On
    /// `Ok` the local store has applied it.
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
                // Another leader, or none: this attempt may never be answered.
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
                // An earlier attempt may be in a log all the same.
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

    /// Proposes as leader what may be proposed.
    pub(crate) async fn propose_here(&self, command: Command, deadline: Duration) -> Verdict {
        if let Some(reason) = self.quarantined() {
            return Verdict::NotEntered(reason);
        }
        if let Some(reason) = self.no_room_for(&command.txn) {
            return Verdict::NoRoom(reason);
        }
        // Without a quorum everything waits, and is taken when there is one again.
        if self.leadership.borrow().leading
            && let Some(reason) = self.proposals.local.overload()
        {
            return Verdict::Overloaded(reason);
        }
        self.proposals.local.propose(command, deadline).await
    }

    async fn propose_to(&self, leader: NodeId, command: &Command, deadline: Duration) -> Verdict {
        if leader == self.node_id {
            return self.propose_here(command.clone(), deadline).await;
        }
        match self.address_of(leader) {
            Some(address) => self.proposals.towards(leader, address).propose(command.clone(), deadline).await,
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
