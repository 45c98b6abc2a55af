//! A call that stays open and carries one exchange after the other: a message each
//! way costs a fraction of a call. Heartbeats, read indexes and forwarded proposals
//! go so. `service.rs` is the other end.

use std::future::Future;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// An open call on which nothing is under way.
pub(crate) struct Standing<Q, A> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

impl<Q: Send + 'static, A> Standing<Q, A> {
    /// Asks over the `open` call, or over one that `call` makes, and waits for the answer. The call is given back for
    /// the next exchange; whoever stops waiting drops it.
    ///
    /// # Errors
    /// The status of the call that ended. Its source tells whether there was a connection only for a new one: what
    /// went over an open call may have arrived, whatever became of it.
    pub(crate) async fn ask<F>(
        open: Option<Self>,
        request: Q,
        call: impl FnOnce(ReceiverStream<Q>) -> F,
    ) -> Result<Response<(A, Self)>, Status>
    where
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let request = match open {
            None => request,
            Some(open) => match open.requests.try_send(request) {
                Ok(()) => return open.answer().await.map_err(|status| sourceless(&status)),
                // It has ended, and nothing was sent.
                Err(
                    mpsc::error::TrySendError::Closed(request) | mpsc::error::TrySendError::Full(request),
                ) => request,
            },
        };
        let (requests, receiver) = mpsc::channel(1);
        if requests.try_send(request).is_err() {
            return Err(ended());
        }
        let answers = call(ReceiverStream::new(receiver)).await?.into_inner();
        Self { requests, answers }.answer().await
    }

    async fn answer(mut self) -> Result<Response<(A, Self)>, Status> {
        let answer = self.answers.message().await?.ok_or_else(ended)?;
        Ok(Response::new((answer, self)))
    }
}

fn ended() -> Status {
    Status::unavailable("the other side has ended the call")
}

fn sourceless(status: &Status) -> Status {
    Status::with_metadata(status.code(), status.message(), status.metadata().clone())
}
