//! Group commit: proposals wait in one bounded queue; as many as there are go on
//! together, and a few such batches are under destination at once. Who finds nobody waiting
//! and one batch less than that goes on alone. On the leader a batch
//! is a log entry with its fsync, on a follower one call of the leader
//! (`forward.rs`). What came of each proposal is told exactly: not entered,
//! unknown, or its outcome. `propose.rs` feeds it, and `service.rs` with what
//! others forward.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use storage::{Applied, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::forward::Forward;
use crate::network::lock;
use crate::raft_types::{Content, Proposal, Raft, TypeConfig};

/// While the next proposal in the queue has waited for longer than this, new ones are
/// refused: what waits then is answered within a second, and the queue stays short.
const OVERLOADED_AFTER: Duration = Duration::from_millis(500);
/// Proposals that wait.
const QUEUE: usize = 4096;
/// Proposals in a batch.
pub(crate) const BATCH_COMMANDS: usize = 512;
/// Bytes of a batch, or one larger proposal.
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches under destination: while one is written the next is gathered. More of them are smaller, and what a batch costs is
/// most of what a write costs (with four: 1 to 21 % fewer writes a second of 64 and 1,000 clients).
const IN_FLIGHT: usize = 2;

/// What the leader says of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Verdict {
    /// Applied by the leader in the entry at this index, or an earlier one.
    Applied { applied: Applied, index: u64 },
    /// Certainly in no log because of this attempt.
    NotEntered(String),
    /// It may be in a log.
    Unknown(String),
    /// In no log, and not to be tried again: there is no room.
    NoRoom(String),
    /// In no log: too much waits already. To be tried again a little later.
    Overloaded(String),
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

struct Pending {
    command: Command,
    size_bytes: usize,
    queued: Instant,
    /// Nobody waits for it any longer than this.
    until: Instant,
    state: Arc<AtomicU8>,
    verdict: oneshot::Sender<Verdict>,
}

/// Where batches go.
#[derive(Clone)]
pub(crate) enum Destination {
    /// Into the log: this master leads.
    Log(Raft),
    /// To another master, which leads.
    Leader(Forward),
}

/// The queue's entrance.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
    destination: Destination,
    in_flight: Arc<Semaphore>,
    /// When the next proposal in line was queued; none: nothing waits.
    next_queued: Arc<Mutex<Option<Instant>>>,
}

impl Proposer {
    /// A proposer, and its work to be spawned; it ends when the last clone of
    /// the proposer is gone.
    pub(crate) fn new(destination: Destination) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        let next_queued = Arc::default();
        let running = run(destination.clone(), in_flight.clone(), Arc::clone(&next_queued), receiver);
        (Self { queue, destination, in_flight, next_queued }, running)
    }

    /// How long the next proposal in line has waited.
    pub(crate) fn waits_for(&self) -> Duration {
        lock(&self.next_queued).map_or(Duration::ZERO, |queued| queued.elapsed())
    }

    /// Why nothing more is taken now, where that is so.
    pub(crate) fn overload(&self) -> Option<String> {
        let waits = self.waits_for();
        (waits > OVERLOADED_AFTER)
            .then(|| format!("writes wait for {} ms already; try again later", waits.as_millis()))
    }

    /// The right to go on alone.
    fn alone(&self) -> Option<OwnedSemaphorePermit> {
        let nobody_waits = self.queue.capacity() == self.queue.max_capacity() && !self.queue.is_closed();
        if nobody_waits { self.in_flight.clone().try_acquire_owned().ok() } else { None }
    }

    /// Proposes. After `deadline` the answer is what is certain then.
    pub(crate) async fn propose(&self, command: Command, deadline: Duration) -> Verdict {
        let state = Arc::new(AtomicU8::new(WAITING));
        let (verdict, receiver) = oneshot::channel();
        let size_bytes = command.txn.size_bytes() + 64;
        let queued = Instant::now();
        let until = queued + deadline;
        let pending = Pending { command, size_bytes, queued, until, state: state.clone(), verdict };
        let withdrawal = Withdrawal(state.clone());
        let answer = tokio::time::timeout(deadline, async {
            if let Some(permit) = self.alone() {
                state.store(TAKEN, Ordering::Release);
                tokio::spawn(write(self.destination.clone(), vec![pending], permit));
                return receiver.await.ok();
            }
            match self.queue.send(pending).await {
                Ok(()) => receiver.await.ok(),
                Err(_) => Some(Verdict::NotEntered("this master is stopping".to_owned())),
            }
        });
        match answer.await {
            Ok(Some(verdict)) => verdict,
            late => {
                let reason = if late.is_err() { "no quorum answered in time" } else { "the leader stopped" };
                if withdrawal.withdraw() {
                    Verdict::NotEntered(reason.to_owned())
                } else {
                    Verdict::Unknown(reason.to_owned())
                }
            }
        }
    }
}

/// Keeps a proposal whose author went away out of the log, if it is not on its
/// destination yet.
struct Withdrawal(Arc<AtomicU8>);

impl Withdrawal {
    fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire) != Err(TAKEN)
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        self.withdraw();
    }
}

async fn run(
    destination: Destination,
    in_flight: Arc<Semaphore>,
    next_queued: Arc<Mutex<Option<Instant>>>,
    mut queue: mpsc::Receiver<Pending>,
) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(pending) => pending,
            None => match queue.recv().await {
                Some(pending) => pending,
                None => return,
            },
        };
        *lock(&next_queued) = Some(first.queued);
        // While batches are under destination, the batch grows.
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        *lock(&next_queued) = None;
        let mut bytes = first.size_bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH_COMMANDS {
            match queue.try_recv() {
                Ok(pending) if bytes + pending.size_bytes > BATCH_BYTES => {
                    next = Some(pending);
                    break;
                }
                Ok(pending) => {
                    bytes += pending.size_bytes;
                    batch.push(pending);
                }
                Err(_) => break,
            }
        }
        batch.retain(|pending| {
            pending.state.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
        });
        if !batch.is_empty() {
            tokio::spawn(write(destination.clone(), batch, permit));
        }
    }
}

async fn write(destination: Destination, batch: Vec<Pending>, _permit: OwnedSemaphorePermit) {
    let until = batch.iter().map(|pending| pending.until).max().unwrap_or_else(Instant::now);
    let (commands, senders): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|pending| (pending.command, pending.verdict)).unzip();
    let verdicts = match destination {
        Destination::Log(raft) => append(&raft, commands).await,
        Destination::Leader(leader) => leader.propose(commands, until).await,
    };
    for (sender, verdict) in senders.into_iter().zip(verdicts) {
        // Whoever asked may have gone away.
        let _ = sender.send(verdict);
    }
}

/// One log entry with all of them.
async fn append(raft: &Raft, commands: Vec<Command>) -> Vec<Verdict> {
    let count = commands.len();
    match Proposal::encode(&Content::Commands(commands)) {
        Ok(proposal) => match raft.client_write(proposal).await {
            Ok(response) => {
                let index = response.log_id.index;
                response.data.results.into_iter().map(|applied| Verdict::Applied { applied, index }).collect()
            }
            Err(error) => vec![verdict_of(error); count],
        },
        Err(error) => vec![Verdict::NotEntered(error.to_string()); count],
    }
}

fn verdict_of(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Verdict {
    match error {
        // openraft gives these before it appends anything.
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Verdict::NotEntered(format!("this master may not write: {:?}", forward.reason))
        }
        error => Verdict::Unknown(error.to_string()),
    }
}
