//! A call that stays open and carries one exchange after another: a message each way costs a fraction of a
//! call. Used for heartbeats, read indexes and forwarded proposals. `service.rs` serves the other end.

use std::future::Future;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// An open call with no exchange in progress.
pub(crate) struct OpenCall<Q, A> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

impl<Q: Send + 'static, A> OpenCall<Q, A> {
    /// Sends a request over the `open` call, or over a new one made by `call`, and waits for the answer.
    /// Returns the call for the next exchange; a caller that stops waiting drops the call.
    ///
    /// # Errors
    /// The status that ended the call. Only for a new call does its source tell whether there was a
    /// connection: a request sent over an open call may have arrived in any case.
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
                // The open call has ended, so the request was not sent over it.
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

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io::ErrorKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::{BufMut, Bytes, BytesMut};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use prost::Message;
    use proto_wire::raft::ReadIndexResponse;
    use tokio_stream::StreamExt;
    use tonic::body::Body;
    use tonic::codec::Codec;
    use tonic_prost::ProstCodec;

    use super::*;

    /// Breaks the connection instead of answering.
    const BREAK: u64 = 0;
    /// Ends the call after this answer.
    const LAST: u64 = 99;

    /// The other side, which answers a number with itself.
    struct Echo(AtomicUsize);

    impl Echo {
        async fn call(
            &self,
            requests: ReceiverStream<u64>,
        ) -> Result<Response<Streaming<ReadIndexResponse>>, Status> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let mut ended = false;
            let frames = requests.map_while(move |number| {
                if std::mem::replace(&mut ended, number == LAST) {
                    return None;
                }
                if number == BREAK {
                    return Some(Err(std::io::Error::from(ErrorKind::HostUnreachable)));
                }
                let answer = ReadIndexResponse { log_index: number, ..Default::default() }.encode_to_vec();
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(u32::try_from(answer.len()).unwrap());
                frame.put_slice(&answer);
                Some(Ok(Frame::data(frame.freeze())))
            });
            let body = Body::new(StreamBody::new(frames.map(|frame: std::io::Result<Frame<Bytes>>| frame)));
            let decoder = ProstCodec::<ReadIndexResponse, ReadIndexResponse>::default().decoder();
            Ok(Response::new(Streaming::new_response(decoder, body, http::StatusCode::OK, None, None)))
        }
    }

    type Open = OpenCall<u64, ReadIndexResponse>;

    async fn ask(echo: &Echo, open: Option<Open>, number: u64) -> Result<(u64, Open), Status> {
        let answer = OpenCall::ask(open, number, |requests| echo.call(requests)).await?;
        let (answer, open) = answer.into_inner();
        Ok((answer.log_index, open))
    }

    #[tokio::test]
    async fn one_call_carries_many_exchanges_and_a_new_one_follows_when_it_has_ended() {
        let echo = Echo(AtomicUsize::new(0));
        let (mut open, mut calls) = (None, 0);
        for number in [1, 2, LAST, 3, 4] {
            let (answer, next) = ask(&echo, open, number).await.unwrap();
            assert_eq!(answer, number);
            calls += usize::from(number == 1 || number == 3);
            if number == LAST {
                // The receiver of the requests was dropped.
                open = Some(OpenCall { requests: mpsc::channel(1).0, answers: next.answers });
                continue;
            }
            assert_eq!(echo.0.load(Ordering::Relaxed), calls, "after {number}");
            open = Some(next);
        }
        assert_eq!(echo.0.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn only_the_error_of_a_new_call_says_that_there_was_no_connection() {
        let echo = Echo(AtomicUsize::new(0));
        let new = ask(&echo, None, BREAK).await.err().unwrap();
        assert!(new.source().is_some());
        let (_, open) = ask(&echo, None, 1).await.unwrap();
        let open = ask(&echo, Some(open), BREAK).await.err().unwrap();
        assert_eq!(open.code(), new.code());
        assert!(open.source().is_none());
    }
}
