//! Group commit: proposals wait in one bounded queue, are written in batches, and [`IN_FLIGHT`] batches may
//! be in flight at once. If nobody waits and no batch is in flight, a proposal is written alone at once. On
//! the leader a batch is a log entry with its fsync, on a follower a call to the leader (`forward.rs`). The
//! result of each proposal is told exactly: not entered, unknown, or its outcome.
//! `propose.rs` feeds the queue, and `service.rs` does with proposals that other masters forward.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use proto_env::supervise::catch;
use storage::{Applied, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::forward::Forward;
use crate::network::lock;
use crate::preference::Gathered;
use crate::raft_types::{Content, Proposal, Raft, TypeConfig};

/// Wait of the next proposal in the queue above which new ones are refused: so proposals are answered
/// within a second, and the queue stays short.
const OVERLOADED_AFTER: Duration = Duration::from_millis(500);
/// Maximum number of proposals that wait.
const QUEUE: usize = 4096;
/// Maximum number of proposals in a batch.
pub(crate) const BATCH_COMMANDS: usize = 512;
/// Maximum bytes of a batch, which may instead be one larger proposal.
const BATCH_BYTES: usize = 1024 * 1024;
/// Maximum number of batches in flight: while one is written, the next is gathered. With more, batches are
/// smaller, and most of a write's cost is that of its batch (with four: 1 to 21 % fewer writes a second of
/// 64 and 1,000 clients).
const IN_FLIGHT: usize = 2;

/// The leader's answer to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Verdict {
    /// Applied by the leader in the entry at this index or in an earlier one.
    Applied { applied: Applied, index: u64 },
    /// Certainly not in the log because of this attempt; the reason.
    NotEntered(String),
    /// Possibly in the log; the reason.
    Unknown(String),
    /// Not in the log, and not to be retried: the disks are nearly full.
    NoRoom(String),
    /// Not in the log because too many proposals wait; to be retried a little later.
    Overloaded(String),
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

struct Pending {
    command: Command,
    size_bytes: usize,
    queued: Instant,
    /// The proposal's deadline: its author does not wait any longer.
    until: Instant,
    state: Arc<AtomicU8>,
    verdict: oneshot::Sender<Verdict>,
}

/// How a proposal arrives, which decides whether it may be written alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// By itself: it is written at once where no batch is in flight.
    Single,
    /// Together with others, with which it shares a batch.
    WithOthers,
}

/// The destination of batches.
#[derive(Clone)]
pub(crate) enum Destination {
    /// The log: this master leads.
    Log(Raft),
    /// The master that leads.
    Leader(Forward),
}

/// The entrance to the queue of proposals.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
    destination: Destination,
    in_flight: Arc<Semaphore>,
    gathered: Gathered,
    /// When the next proposal in the queue was queued; `None`: the queue is empty.
    next_queued: Arc<Mutex<Option<Instant>>>,
}

impl Proposer {
    /// Makes a proposer, and the future to be spawned that writes the batches. The future ends when the
    /// last clone of the proposer is dropped.
    pub(crate) fn new(
        destination: Destination,
        gathered: Gathered,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        let next_queued = Arc::default();
        let gatherer = Gatherer {
            destination: destination.clone(),
            in_flight: in_flight.clone(),
            gathered: gathered.clone(),
            next_queued: Arc::clone(&next_queued),
        };
        (Self { queue, destination, in_flight, gathered, next_queued }, gatherer.run(receiver))
    }

    /// Returns how long the next proposal in the queue has waited.
    pub(crate) fn waits_for(&self) -> Duration {
        lock(&self.next_queued).map_or(Duration::ZERO, |queued| queued.elapsed())
    }

    /// Returns why no more proposals are accepted now; `None`: they are accepted.
    pub(crate) fn overload(&self) -> Option<String> {
        let waits = self.waits_for();
        (waits > OVERLOADED_AFTER)
            .then(|| format!("writes wait for {} ms already; try again later", waits.as_millis()))
    }

    /// Returns whether the future that writes the batches has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.queue.is_closed()
    }

    /// Takes a permit to write a proposal alone; `None`: it has to queue. While a batch is in flight, the
    /// proposals that come share the next one.
    fn alone(&self) -> Option<OwnedSemaphorePermit> {
        let nobody_waits = self.queue.capacity() == self.queue.max_capacity() && !self.queue.is_closed();
        let none_in_flight = self.in_flight.available_permits() == IN_FLIGHT;
        if nobody_waits && none_in_flight { self.in_flight.clone().try_acquire_owned().ok() } else { None }
    }

    /// Proposes a command. If `deadline` passes, the verdict says what is certain at that time.
    pub(crate) async fn propose(&self, command: Command, arrival: Arrival, deadline: Duration) -> Verdict {
        let state = Arc::new(AtomicU8::new(WAITING));
        let (verdict, receiver) = oneshot::channel();
        let size_bytes = command.txn.size_bytes() + 64;
        let queued = Instant::now();
        let until = queued + deadline;
        let pending = Pending { command, size_bytes, queued, until, state: state.clone(), verdict };
        let withdrawal = Withdrawal(state.clone());
        let answer = tokio::time::timeout(deadline, async {
            if arrival == Arrival::Single
                && let Some(permit) = self.alone()
            {
                // In the author's own task, which saves two changes of task. If the author goes away, the
                // proposal is in flight all the same, without a permit.
                state.store(TAKEN, Ordering::Release);
                self.gathered.add(1);
                drop(catch("proposals", write(self.destination.clone(), vec![pending], permit)).await);
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

/// Keeps the proposal of an author that went away out of the log, if it was not taken into a batch yet.
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

/// Gathers the proposals of a queue into batches.
struct Gatherer {
    destination: Destination,
    in_flight: Arc<Semaphore>,
    gathered: Gathered,
    next_queued: Arc<Mutex<Option<Instant>>>,
}

impl Gatherer {
    async fn run(self, mut queue: mpsc::Receiver<Pending>) {
        let Self { destination, in_flight, gathered, next_queued } = self;
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
            // While all permits are in use, more proposals join the batch.
            let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
            *lock(&next_queued) = None;
            // Lets every task that is ready to propose do so first.
            tokio::task::yield_now().await;
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
                gathered.add(batch.len());
                spawn_write(destination.clone(), batch, permit);
            }
        }
    }
}

/// Writes a batch in a task of its own. After a panic, which is counted and logged, the outcome of its
/// proposals is unknown.
fn spawn_write(destination: Destination, batch: Vec<Pending>, permit: OwnedSemaphorePermit) {
    tokio::spawn(async move { drop(catch("proposals", write(destination, batch, permit)).await) });
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
        // The author may have gone away.
        let _ = sender.send(verdict);
    }
}

/// Writes all commands as one log entry.
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
        // openraft returns these errors before it appends anything.
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Verdict::NotEntered(format!("this master may not write: {:?}", forward.reason))
        }
        error => Verdict::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proto_env::{CancellationToken, Env, TlsNetwork};

    use super::*;
    use crate::testing::lone_master;
    use crate::tests::harness::{create, wait_for, write};
    use crate::{ProposeError, ProposeOptions};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_refuses_writes_once_the_next_one_has_waited_for_half_a_second() {
        let directory = tempfile::tempdir().unwrap();
        let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
        let master = lone_master(directory.path(), &env).await.unwrap();
        write(&master, "/before", "v").await;
        let local = &master.proposals.local;
        assert_eq!(local.overload(), None);
        // All batches that may be in flight are, and none ends.
        let permits = local.in_flight.clone().acquire_many_owned(IN_FLIGHT as u32).await.unwrap();
        let waiting = {
            let master = master.clone();
            tokio::spawn(
                async move { master.propose(create("/waiting", "v"), ProposeOptions::default()).await },
            )
        };
        wait_for("the write to wait", async || (!local.waits_for().is_zero()).then_some(())).await;
        // Who comes early waits too.
        if local.waits_for() < OVERLOADED_AFTER / 2 {
            assert_eq!(local.overload(), None);
        }
        wait_for("the overload", async || (local.waits_for() > OVERLOADED_AFTER).then_some(())).await;
        let refused = master.propose(create("/refused", "v"), ProposeOptions::default()).await;
        assert!(matches!(&refused, Err(ProposeError::Overloaded { .. })), "{refused:?}");
        drop(permits);
        waiting.await.unwrap().unwrap();
        write(&master, "/after", "v").await;
        assert_eq!(local.overload(), None);
        // The refused write is in no log.
        assert!(master.store().get("/refused").is_none());
        assert_eq!(master.store().len(), 3);
        master.shutdown().await;
    }
}
