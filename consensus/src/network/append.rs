//! AppendEntries to one follower, as one call that stays open: several requests are in flight at once, and
//! each costs a message instead of a call. openraft makes the requests and takes the answers
//! (`NetStreamAppend`); `service.rs` serves the other end.
//!
//! openraft makes a request without entries whenever the committed index advances. Two rules apply to
//! those:
//!
//! - **None is sent behind a request without an answer.** openraft takes an answer that names a log index
//!   as the answer to every request up to that index, and the time at which it made the last of them as
//!   proof that this master led then. If an empty request followed an unanswered one, an answer given
//!   before a read came would prove that this master led after it: a stale read if another master leads by
//!   now (`a_commit_does_not_follow_what_is_unanswered`).
//! - **While entries come in quick succession, an empty request waits for the next entries**, which carry
//!   the committed index as well. This halves the messages of a client that makes one write after the
//!   other.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use proto_env::planted::{self, Bug};
use proto_wire::raft::RaftMessage;
use proto_wire::raft::raft_client::RaftClient;
use storage::codec::{decode, encode};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::client::{APPEND_TIMEOUT, transfer, unreachable};
use super::{CallError, Lane, Peers};
use crate::raft_types::TypeConfig;
use crate::types::NodeId;

/// Maximum number of requests sent and not answered. Each has at most what `log_store.rs` reads at once.
const IN_FLIGHT: usize = 8;
/// Maximum time between two entries that are in quick succession.
const SUCCESSION: Duration = Duration::from_millis(3);

pub(super) type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

type Request = AppendEntriesRequest<TypeConfig>;

/// An open call to one follower.
struct Session<S, A> {
    peers: Arc<Peers>,
    target: NodeId,
    /// openraft's requests and the call's sender; `None` once openraft's requests have ended.
    requests: Option<(S, mpsc::Sender<RaftMessage>)>,
    answers: A,
    waiting: usize,
    /// When the call fails unless an answer comes before.
    due: Instant,
    /// Index of the last entry sent; the follower has it once it has answered.
    sent: Option<u64>,
    given_out: watch::Receiver<Option<u64>>,
    /// When entries were last sent, and how long after the entries before them.
    succession: Option<(Instant, Duration)>,
    /// A request without entries that is held back, and until when it waits for entries.
    held: Option<(Request, Instant)>,
    /// Notified when the follower should hear the committed index at once.
    urges: Arc<Notify>,
    urged: bool,
}

/// Opens the call with the first request; returns an empty stream of answers if there is no request.
///
/// # Errors
/// If the follower cannot be reached or refuses.
pub(super) async fn open<S>(
    peers: Arc<Peers>,
    target: NodeId,
    client: impl FnOnce() -> Result<RaftClient<Channel>, CallError>,
    given_out: watch::Receiver<Option<u64>>,
    mut requests: S,
) -> Result<impl Stream<Item = Answer> + Send, RPCError<TypeConfig>>
where
    S: Stream<Item = Request> + Send + Unpin,
{
    let Some(first) = requests.next().await else {
        return Ok(futures::stream::empty().left_stream());
    };
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let patience = APPEND_TIMEOUT + post(&sender, &first)?;
    // The client is made only now that there is a request: the follower may have moved while openraft held
    // it back.
    let mut client = client().map_err(unreachable)?;
    let call = client.append_entries(peers.request(target, ReceiverStream::new(receiver)));
    let answers = peers.call(target, Lane::Append, patience, call).await.map_err(unreachable)?;
    let due = Instant::now() + patience;
    let session = Session::new(peers, target, (requests, sender), answers, given_out, (&first, due));
    let answers = futures::stream::unfold(Some(session), async |session| {
        let mut session = session?;
        let answer = session.next().await?;
        // An answer that is an error is the last one.
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(session)))
    });
    Ok(answers.right_stream())
}

pub(super) fn message(request: &Request) -> storage::Result<RaftMessage> {
    let payload = encode("raft request", request)?;
    Ok(RaftMessage { payload })
}

/// Puts a request into the call; returns how much longer its answer may take because of its size.
fn post(sender: &mpsc::Sender<RaftMessage>, request: &Request) -> Result<Duration, RPCError<TypeConfig>> {
    let message = message(request).map_err(unreachable)?;
    let longer = transfer(&message.payload);
    match sender.try_send(message) {
        // If the other side has ended the call, its next answer says why.
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(longer),
        // The channel has room for all requests that may be in flight.
        Err(full) => Err(unreachable(full)),
    }
}

/// Returns the index of the last entry of a follower that accepts the request.
fn last(request: &Request) -> Option<u64> {
    let added = request.entries.last().map(|entry| entry.log_id.index);
    added.or(request.prev_log_id.map(|previous| previous.index))
}

impl<S, A> Session<S, A>
where
    S: Stream<Item = Request> + Send + Unpin,
    A: Stream<Item = Result<RaftMessage, Status>> + Send + Unpin,
{
    /// Wraps a call over which `first` was sent, whose answer is due at the given time.
    fn new(
        peers: Arc<Peers>,
        target: NodeId,
        requests: (S, mpsc::Sender<RaftMessage>),
        answers: A,
        given_out: watch::Receiver<Option<u64>>,
        (first, due): (&Request, Instant),
    ) -> Self {
        Self {
            urges: peers.urges(target),
            peers,
            target,
            requests: Some(requests),
            answers,
            waiting: 1,
            due,
            sent: last(first),
            given_out,
            succession: None,
            held: None,
            urged: false,
        }
    }

    /// Waits for the next answer; meanwhile sends the requests that are due.
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if self.waiting == 0 && self.requests.is_none() {
                return None;
            }
            let held_until = self.held.as_ref().map_or(self.due, |(_, until)| *until);
            let request = async {
                let Some((requests, _)) = &mut self.requests else { return std::future::pending().await };
                if self.waiting == IN_FLIGHT {
                    return std::future::pending().await;
                }
                // When entries with these indexes exist, openraft's next request has entries.
                let more = |given_out: &Option<u64>| *given_out > self.sent;
                // Planted: requests without entries follow at once.
                if self.waiting > 0
                    && !planted::is(Bug::AnswerProvesTooMuch)
                    && self.given_out.wait_for(more).await.is_err()
                {
                    return std::future::pending().await;
                }
                requests.next().await
            };
            let sent = tokio::select! {
                biased;
                answer = self.answers.next() => return Some(self.answered(answer)),
                request = request => self.take(request),
                () = self.urges.notified() => self.urge(),
                () = tokio::time::sleep_until(held_until), if self.held.is_some() => self.release(),
                () = tokio::time::sleep_until(self.due), if self.waiting > 0 => {
                    self.peers.forget(self.target, Lane::Append);
                    return Some(Err(unreachable(CallError::Timeout(APPEND_TIMEOUT))));
                }
            };
            if let Err(error) = sent {
                return Some(Err(error));
            }
        }
    }

    /// Sends the request that openraft made, or holds it back.
    fn take(&mut self, request: Option<Request>) -> Result<(), RPCError<TypeConfig>> {
        let Some(request) = request else {
            let released = self.release();
            self.requests = None;
            return released;
        };
        let now = Instant::now();
        if request.entries.is_empty() {
            if let Some((at, after)) = self.succession
                && after < SUCCESSION
                && self.waiting == 0
                && !self.urged
            {
                self.held = Some((request, at + SUCCESSION));
                return Ok(());
            }
        } else {
            let after = self.succession.map_or(Duration::MAX, |(at, _)| now - at);
            self.succession = Some((now, after));
        }
        self.send(&request)
    }

    fn urge(&mut self) -> Result<(), RPCError<TypeConfig>> {
        self.urged = true;
        self.release()
    }

    /// Sends the request that is held back, if there is one.
    fn release(&mut self) -> Result<(), RPCError<TypeConfig>> {
        match self.held.take() {
            Some((request, _)) => self.send(&request),
            None => Ok(()),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), RPCError<TypeConfig>> {
        // This request carries the committed index of the one held back, too.
        self.held = None;
        self.urged = false;
        let Some((_, sender)) = &self.requests else { return Ok(()) };
        let longer = post(sender, request)?;
        if sender.is_closed() {
            self.requests = None;
        }
        let from = if self.waiting == 0 { Instant::now() + APPEND_TIMEOUT } else { self.due };
        self.due = from + longer;
        self.waiting += 1;
        self.sent = last(request);
        Ok(())
    }

    fn answered(&mut self, answer: Option<Result<RaftMessage, Status>>) -> Answer {
        match answer {
            Some(Ok(message)) => {
                self.waiting = self.waiting.saturating_sub(1);
                // Never earlier than before: requests still in flight keep their time.
                self.due = self.due.max(Instant::now() + APPEND_TIMEOUT);
                decode("raft response", &message.payload).map_err(unreachable)
            }
            None => Err(unreachable("the follower has ended the call")),
            Some(Err(status)) => Err(unreachable(self.peers.refused(self.target, Lane::Append, status))),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry as _;
    use openraft::type_config::alias::CommittedLeaderIdOf;
    use proto_env::{Blocking, PriorityRuntime, TlsNetwork};

    use super::*;
    use crate::raft_types::{LogId, RaftEntry, Vote};

    /// Both ends of a session over which entry 1 was sent.
    struct Fixture {
        requests: mpsc::Sender<Request>,
        given_out: watch::Sender<Option<u64>>,
        urges: Arc<Notify>,
        sent: mpsc::Receiver<RaftMessage>,
        answers: mpsc::Sender<Result<RaftMessage, Status>>,
    }

    fn id(index: u64) -> LogId {
        LogId { leader_id: CommittedLeaderIdOf::<TypeConfig>::from(1), index }
    }

    fn entry(index: u64) -> Request {
        Request { entries: vec![RaftEntry::new_blank(id(index))], ..commit(index - 1) }
    }

    /// Makes an empty request that commits an entry sent before.
    fn commit(index: u64) -> Request {
        let vote = Vote::new_committed(1, 1);
        Request { vote, prev_log_id: Some(id(index)), entries: vec![], leader_commit: Some(id(index)) }
    }

    impl Fixture {
        fn new() -> Self {
            let runtime = Arc::new(PriorityRuntime::start(Blocking::Inline, "raft", 1).unwrap());
            let peers = Peers::new(Arc::new(TlsNetwork::joining()), runtime, "c", 1, "127.0.0.1:1").unwrap();
            let (requests, made) = mpsc::channel(16);
            let (sender, sent) = mpsc::channel(IN_FLIGHT);
            let (answers, answered) = mpsc::channel(16);
            let given_out = watch::Sender::new(Some(1));
            let urges = peers.urges(2);
            let mut session = Session::new(
                peers,
                2,
                (ReceiverStream::new(made), sender),
                ReceiverStream::new(answered),
                given_out.subscribe(),
                (&entry(1), Instant::now() + APPEND_TIMEOUT),
            );
            tokio::spawn(async move { while matches!(session.next().await, Some(Ok(_))) {} });
            Self { requests, given_out, urges, sent, answers }
        }

        async fn make(&self, request: Request) {
            self.requests.send(request).await.unwrap();
        }

        async fn answer(&self, index: u64) {
            let answer: StreamAppendResult<TypeConfig> = Ok(Some(id(index)));
            let payload = encode("raft response", &answer).unwrap();
            self.answers.send(Ok(RaftMessage { payload })).await.unwrap();
        }

        /// Returns the next request sent: when it was sent, the entry it follows, and its number of
        /// entries.
        async fn sent(&mut self) -> (Duration, u64, usize) {
            let begun = Instant::now();
            let message = self.sent.recv().await.unwrap();
            let request: Request = decode("raft request", &message.payload).unwrap();
            (begun.elapsed(), request.prev_log_id.unwrap().index, request.entries.len())
        }

        async fn nothing_is_sent(&mut self) {
            let waited = tokio::time::timeout(Duration::from_secs(1), self.sent.recv()).await;
            assert!(waited.is_err(), "{waited:?}");
        }

        /// Sends the entries up to `last` to the follower, one after the other.
        async fn succession(&mut self, last: u64) {
            for index in 2..=last {
                self.answer(index - 1).await;
                self.make(entry(index)).await;
                assert_eq!(self.sent().await, (Duration::ZERO, index - 1, 1));
            }
            self.answer(last).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_does_not_follow_what_is_unanswered() {
        let mut fixture = Fixture::new();
        fixture.make(commit(1)).await;
        fixture.nothing_is_sent().await;
        fixture.answer(1).await;
        assert_eq!(fixture.sent().await, (Duration::ZERO, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_do() {
        let mut fixture = Fixture::new();
        fixture.make(entry(2)).await;
        // Not known to be entries yet.
        fixture.nothing_is_sent().await;
        fixture.given_out.send_replace(Some(2));
        assert_eq!(fixture.sent().await, (Duration::ZERO, 1, 1));
        fixture.make(commit(2)).await;
        fixture.answer(1).await;
        fixture.nothing_is_sent().await;
        fixture.answer(2).await;
        assert_eq!(fixture.sent().await, (Duration::ZERO, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_goes_with_entries_that_follow_soon() {
        let mut fixture = Fixture::new();
        fixture.succession(3).await;
        fixture.make(commit(3)).await;
        tokio::time::sleep(SUCCESSION / 3).await;
        fixture.make(entry(4)).await;
        assert_eq!(fixture.sent().await, (Duration::ZERO, 3, 1));
        fixture.answer(4).await;
        fixture.nothing_is_sent().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_does_not_wait_longer_than_that() {
        let mut fixture = Fixture::new();
        fixture.succession(3).await;
        fixture.make(commit(3)).await;
        assert_eq!(fixture.sent().await, (SUCCESSION, 3, 0));
        // Nor for entries that come slowly.
        fixture.answer(3).await;
        fixture.make(entry(4)).await;
        assert_eq!(fixture.sent().await, (Duration::ZERO, 3, 1));
        fixture.answer(4).await;
        fixture.make(commit(4)).await;
        assert_eq!(fixture.sent().await, (Duration::ZERO, 4, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_goes_at_once_to_whoever_waits_for_it() {
        for urged_first in [true, false] {
            let mut fixture = Fixture::new();
            fixture.succession(3).await;
            if urged_first {
                fixture.urges.notify_one();
                tokio::time::sleep(SUCCESSION / 3).await;
                fixture.make(commit(3)).await;
            } else {
                fixture.make(commit(3)).await;
                tokio::time::sleep(SUCCESSION / 3).await;
                fixture.urges.notify_one();
            }
            assert_eq!(fixture.sent().await, (Duration::ZERO, 3, 0));
        }
    }
}
