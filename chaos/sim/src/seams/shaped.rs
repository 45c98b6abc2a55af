//! A connection that delivers incoming bytes in order and as late as [`Links`] says. `network.rs` wraps both
//! ends of every connection between machines in one.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use turmoil::net::TcpStream;

use super::links::{Delay, Links, Way};

/// Maximum number of received bytes that wait to be read, like a receive window.
const WINDOW_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 * 1024;

/// When received bytes may be read.
enum Due {
    At(Instant),
    /// Once no fault holds the direction back.
    Held,
    /// Once the reading process is no longer paused and has looked at the socket.
    Unread,
}

/// A connection with delayed reads.
pub struct Shaped {
    inner: TcpStream,
    links: Links,
    /// Direction in which the bytes that are read travel.
    way: Way,
    waiting: VecDeque<(Due, Bytes)>,
    bytes: usize,
    /// Moment at which the last of the waiting bytes is due.
    last: Instant,
    ended: bool,
    timer: Pin<Box<Sleep>>,
}

impl Shaped {
    /// Wraps a connection, on the side that reads what travels in direction `way`.
    pub fn new(inner: TcpStream, links: Links, way: Way) -> Self {
        let last = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(last));
        Self { inner, links, way, waiting: VecDeque::new(), bytes: 0, last, ended: false, timer }
    }

    /// Reads what has arrived from the connection, as far as the window allows.
    fn take(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended && self.bytes < WINDOW_BYTES {
            let mut bytes = vec![0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            let length = buffer.filled().len();
            bytes.truncate(length);
            self.ended = length == 0;
            self.bytes += length;
            let due = self.due();
            self.waiting.push_back((due, bytes.into()));
        }
        Ok(())
    }

    fn due(&mut self) -> Due {
        match self.links.delay(self.way) {
            Delay::Held => Due::Held,
            Delay::Unread => Due::Unread,
            Delay::For(delay) => {
                self.last = self.last.max(Instant::now() + delay);
                Due::At(self.last)
            }
        }
    }

    /// Waits until the first of the waiting bytes is due.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((due, _)) = self.waiting.front() else { return Poll::Ready(()) };
        let unread = matches!(due, Due::Unread);
        let at = match due {
            Due::At(at) => *at,
            Due::Held | Due::Unread => match self.links.delay(self.way) {
                Delay::Held | Delay::Unread => {
                    self.links.wait(cx.waker());
                    return Poll::Pending;
                }
                Delay::For(_) => Instant::now() + if unread { self.links.look() } else { Duration::ZERO },
            },
        };
        if unread && let Some((due, _)) = self.waiting.front_mut() {
            *due = Due::At(at);
            // Once the first bytes in the socket are read, all that wait with them are due.
            self.waiting
                .iter_mut()
                .filter(|(due, _)| matches!(due, Due::Unread))
                .for_each(|(due, _)| *due = Due::At(at));
            self.last = self.last.max(at);
        }
        if at <= Instant::now() {
            return Poll::Ready(());
        }
        self.timer.as_mut().reset(at);
        self.timer.as_mut().poll(cx)
    }
}

impl AsyncRead for Shaped {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waiting.is_empty() && this.links.is_clear(this.way) {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        this.take(cx)?;
        if this.waiting.is_empty() {
            return Poll::Pending;
        }
        ready!(this.poll_due(cx));
        if let Some((_, bytes)) = this.waiting.front_mut() {
            let length = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..length]);
            bytes.advance(length);
            this.bytes -= length;
            // The end of the stream stays queued, so that later reads see it too.
            if bytes.is_empty() && length > 0 {
                this.waiting.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Shaped {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
