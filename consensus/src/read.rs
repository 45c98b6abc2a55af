//! Consistent reads on any master: the leader confirms with a quorum that it still leads and returns its
//! committed index (read index); the reader then waits until its own replica has applied that index.
//! Readers that come during a round share the next one.

use std::sync::Arc;
use std::time::Duration;

use openraft::{LinearizerOption, ReadPolicy};
use proto_env::CancellationToken;
use proto_env::planted::{self, Bug};
use proto_wire::raft::{ReadIndexRequest, ReadIndexResponse};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::defence::Defence;
use crate::membership::address_of;
use crate::network::open_call::OpenCall;
use crate::network::{Lane, Peers};
use crate::preference::Gathered;
use crate::raft_types::Raft;
use crate::types::{Leadership, NodeId, ReadError};

/// Maximum number of readers that wait for a round.
const QUEUE: usize = 8192;
/// Time limit of one round.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The result of a round: the index to wait for, or why there is none.
type Round = Result<u64, String>;

/// The open call over which a leader is asked for read indexes.
type ReadIndexCall = (NodeId, OpenCall<ReadIndexRequest, ReadIndexResponse>);

/// A reader that waits for the next round.
type Reader = oneshot::Sender<Round>;

/// The reads of one master: a queue of readers that wait for the next round.
pub(crate) struct Reads {
    queue: mpsc::Sender<Reader>,
    applied_index: watch::Receiver<u64>,
    defence: Arc<Defence>,
    gathered: Gathered,
    indexes: Indexes,
}

/// Where read indexes come from: this master or the leader.
#[derive(Clone)]
struct Indexes {
    node_id: NodeId,
    raft: Raft,
    peers: Arc<Peers>,
    leadership: watch::Receiver<Leadership>,
    applied_index: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl Reads {
    /// Makes the reads of a master, and the future that runs their rounds, which is to be spawned.
    pub(crate) fn new(
        node_id: NodeId,
        raft: Raft,
        peers: Arc<Peers>,
        leadership: watch::Receiver<Leadership>,
        applied_index: watch::Receiver<u64>,
        (defence, stop): (Arc<Defence>, CancellationToken),
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, readers) = mpsc::channel(QUEUE);
        let indexes =
            Indexes { node_id, raft, peers, leadership, applied_index: applied_index.clone(), stop };
        let gathered = Gathered::default();
        let running = run(indexes.clone(), gathered.clone(), readers);
        (Self { queue, applied_index, defence, gathered, indexes }, running)
    }

    /// Returns the count of this master's readers and rounds.
    pub(crate) fn gathered(&self) -> Gathered {
        self.gathered.clone()
    }

    /// Waits until the local store holds every write that any master acknowledged before the call.
    pub(crate) async fn barrier(&self, deadline: Duration) -> Result<(), ReadError> {
        // Planted: the local replica is as good as any.
        if planted::is(Bug::StaleRead) {
            return Ok(());
        }
        let serves = || match self.defence.quarantined() {
            Some(reason) => Err(ReadError::NoQuorum { reason }),
            None => Ok(()),
        };
        serves()?;
        let until = Instant::now() + deadline;
        let mut reason = "no leader is known".to_owned();
        let mut applied = self.applied_index.clone();
        loop {
            if self.indexes.stop.is_cancelled() {
                return Err(ReadError::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadError::NoQuorum { reason });
            }
            let (sender, receiver) = oneshot::channel();
            let round = async {
                self.queue.send(sender).await.ok()?;
                receiver.await.ok()
            };
            match tokio::time::timeout(left, round).await {
                // Planted: the index is not waited for.
                Ok(Some(Ok(_))) if planted::is(Bug::ReadBeforeApplied) => return Ok(()),
                Ok(Some(Ok(index))) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let wait = applied.wait_for(|applied| *applied >= index);
                    return match tokio::time::timeout(left, wait).await {
                        // The replica may have been found to differ meanwhile.
                        Ok(Ok(_)) => serves(),
                        _ => Err(ReadError::NoQuorum { reason: "this master lags behind".to_owned() }),
                    };
                }
                Ok(Some(Err(error))) => reason = error,
                Ok(None) => return Err(ReadError::Stopped),
                Err(_) => continue,
            }
            tokio::time::sleep(RETRY_PAUSE.min(left)).await;
        }
    }

    /// Returns the read index of this master, which must lead.
    pub(crate) async fn index_here(&self) -> Round {
        self.indexes.here().await
    }
}

/// Runs rounds while there are readers, until the node stops.
async fn run(indexes: Indexes, gathered: Gathered, mut readers: mpsc::Receiver<Reader>) {
    let mut asked = None;
    loop {
        let first = tokio::select! {
            biased;
            () = indexes.stop.cancelled() => return,
            first = readers.recv() => first,
        };
        let Some(first) = first else { return };
        let mut waiting = vec![first];
        // Lets every task that is ready to read join the round.
        tokio::task::yield_now().await;
        // Takes all readers that wait now. One that comes after the round has begun must wait for the next,
        // or it could miss a write acknowledged meanwhile.
        while let Ok(reader) = readers.try_recv() {
            waiting.push(reader);
        }
        gathered.add(waiting.len());
        let round = match tokio::time::timeout(ROUND_TIMEOUT, indexes.next(&mut asked)).await {
            Ok(round) => round,
            Err(_) => Err("no quorum answered in time".to_owned()),
        };
        // Planted: who came while the round was under way takes part in it.
        while planted::is(Bug::ReadJoinsRound)
            && let Ok(reader) = readers.try_recv()
        {
            waiting.push(reader);
        }
        for reader in waiting {
            // A reader may have given up.
            let _ = reader.send(round.clone());
        }
    }
}

impl Consensus {
    /// Waits until the local store holds every write that any master acknowledged before the call.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), ReadError> {
        self.reads.barrier(deadline).await
    }
}

impl Indexes {
    /// Returns a read index from this master or from the leader, asked over the call that `asked` keeps
    /// open.
    async fn next(&self, asked: &mut Option<ReadIndexCall>) -> Round {
        let leader = self.leadership.borrow().leader.ok_or("no leader is known")?;
        if leader == self.node_id {
            return self.here().await;
        }
        let address = address_of(&self.raft, leader).ok_or("the leader's address is not known")?;
        let mut client =
            self.peers.client(leader, &address, Lane::Control).map_err(|error| error.to_string())?;
        let open = asked.take().filter(|(whom, _)| *whom == leader).map(|(_, open)| open);
        let call = OpenCall::ask(open, ReadIndexRequest {}, async |messages| {
            client.read_index(self.peers.request(leader, messages)).await
        });
        let (response, open) = self
            .peers
            .call(leader, Lane::Control, ROUND_TIMEOUT, call)
            .await
            .map_err(|error| format!("asking the leader failed: {error}"))?;
        *asked = Some((leader, open));
        if response.is_leader && response.error.is_empty() {
            Ok(response.log_index)
        } else {
            Err(response.error)
        }
    }

    /// Returns the read index of this master, which must lead.
    async fn here(&self) -> Round {
        // Planted: who thinks that it leads does not ask.
        if planted::is(Bug::ReadWithoutQuorum) && self.raft.is_leader() {
            return Ok(*self.applied_index.borrow());
        }
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(ROUND_TIMEOUT);
        match self.raft.get_read_log_id(option).await {
            Ok((read, _)) => Ok(read.index()),
            Err(error) => Err(error.to_string()),
        }
    }
}
