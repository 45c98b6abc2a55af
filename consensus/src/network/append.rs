//! AppendEntries to one follower as one call that stays open: several requests are
//! under way at once, and each costs a message instead of a call. openraft makes the
//! requests and takes the answers (`NetStreamAppend`); `service.rs` is the other end.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use proto_wire::raft::RaftMessage;
use proto_wire::raft::raft_client::RaftClient;
use storage::codec::{decode, encode};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::client::{APPEND_TIMEOUT, transfer, unreachable};
use super::{CallError, Lane, Peers};
use crate::raft_types::TypeConfig;
use crate::types::NodeId;

/// Requests sent and not answered. Each has at most what `log_store.rs` reads at once.
const IN_FLIGHT: usize = 8;

pub(super) type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// An open call.
struct Session<S> {
    peers: Arc<Peers>,
    target: NodeId,
    /// None once it has ended, and the sender with it.
    requests: Option<(S, mpsc::Sender<RaftMessage>)>,
    answers: Streaming<RaftMessage>,
    waiting: usize,
    /// When nothing has come back for too long.
    due: Instant,
}

/// Opens the call with the first request; gives no answers if there is none.
///
/// # Errors
/// Where the follower cannot be reached, or refuses.
pub(super) async fn open<S>(
    peers: Arc<Peers>,
    target: NodeId,
    client: impl FnOnce() -> Result<RaftClient<Channel>, CallError>,
    mut requests: S,
) -> Result<impl Stream<Item = Answer> + Send, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    let Some(first) = requests.next().await else {
        return Ok(futures::stream::empty().left_stream());
    };
    let first = message(&first).map_err(unreachable)?;
    let patience = APPEND_TIMEOUT + transfer(&first.payload);
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    // There is room for all that may be under way.
    sender.try_send(first).map_err(unreachable)?;
    // Not before there is something to send: the follower may have moved while openraft held it back.
    let mut client = client().map_err(unreachable)?;
    let call = client.append_entries(peers.request(target, ReceiverStream::new(receiver)));
    let answers = peers.call(target, Lane::Append, patience, call).await.map_err(unreachable)?;
    let due = Instant::now() + patience;
    let session = Session { peers, target, requests: Some((requests, sender)), answers, waiting: 1, due };
    let answers = futures::stream::unfold(Some(session), async |session| {
        let mut session = session?;
        let answer = session.next().await?;
        // An answer that is an error is the last.
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(session)))
    });
    Ok(answers.right_stream())
}

pub(super) fn message(request: &AppendEntriesRequest<TypeConfig>) -> storage::Result<RaftMessage> {
    let payload = encode("raft request", request)?;
    Ok(RaftMessage { payload })
}

impl<S> Session<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    /// The next answer; sends what there is to send meanwhile.
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if self.waiting == 0 && self.requests.is_none() {
                return None;
            }
            let request = async {
                match &mut self.requests {
                    Some((requests, _)) if self.waiting < IN_FLIGHT => requests.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = self.answers.message() => return Some(self.answered(answer)),
                request = request => if let Err(error) = self.send(request) {
                    return Some(Err(error));
                },
                () = tokio::time::sleep_until(self.due), if self.waiting > 0 => {
                    self.peers.forget(self.target, Lane::Append);
                    return Some(Err(unreachable(CallError::Timeout(APPEND_TIMEOUT))));
                }
            }
        }
    }

    fn send(
        &mut self,
        request: Option<AppendEntriesRequest<TypeConfig>>,
    ) -> Result<(), RPCError<TypeConfig>> {
        let (Some(request), Some((_, sender))) = (request, &self.requests) else {
            self.requests = None;
            return Ok(());
        };
        let message = message(&request).map_err(unreachable)?;
        let from = if self.waiting == 0 { Instant::now() + APPEND_TIMEOUT } else { self.due };
        self.due = from + transfer(&message.payload);
        self.waiting += 1;
        match sender.try_send(message) {
            Ok(()) => Ok(()),
            // The other side has ended the call and says why next.
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.requests = None;
                Ok(())
            }
            Err(full) => Err(unreachable(full)),
        }
    }

    fn answered(&mut self, answer: Result<Option<RaftMessage>, Status>) -> Answer {
        match answer {
            Ok(Some(message)) => {
                self.waiting = self.waiting.saturating_sub(1);
                // Never sooner than before: what is still under way has its time.
                self.due = self.due.max(Instant::now() + APPEND_TIMEOUT);
                decode("raft response", &message.payload).map_err(unreachable)
            }
            Ok(None) => Err(unreachable("the follower has ended the call")),
            Err(status) => Err(unreachable(self.peers.refused(self.target, Lane::Append, status))),
        }
    }
}
