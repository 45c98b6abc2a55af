//! A connection that ends when the certificate that authenticated it expires: the peer must then
//! authenticate again. `tls.rs` wraps the connections of the peer port in it, on both sides.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::network::BoxedStream;

/// Longest time between two looks at the wall clock, which may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// A stream whose reads and writes fail from a point in time on.
pub struct ExpiringStream {
    stream: BoxedStream,
    until: SystemTime,
    check: Pin<Box<Sleep>>,
    expired: bool,
}

impl ExpiringStream {
    /// Wraps `stream`, which works until the wall clock reads `until`.
    pub fn new(stream: BoxedStream, until: SystemTime) -> Self {
        let check = Box::pin(tokio::time::sleep(pause_before(until)));
        Self { stream, until, check, expired: false }
    }

    /// Fails once the certificate has expired; until then wakes the task for the next check of the clock.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.expired && self.check.as_mut().poll(cx).is_ready() {
            self.expired = SystemTime::now() >= self.until;
            let next = Instant::now() + pause_before(self.until);
            self.check.as_mut().reset(next);
        }
        if self.expired {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the certificate of this connection has expired",
            ));
        }
        Ok(())
    }
}

fn pause_before(until: SystemTime) -> Duration {
    // A little longer than the remaining time, because the two clocks are read at different times.
    let left = until.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_millis(1);
    left.min(CHECK_INTERVAL)
}

impl AsyncRead for ExpiringStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ExpiringStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_ends_with_its_certificate() {
        let (here, mut there) = tokio::io::duplex(64);
        let until = SystemTime::now() + Duration::from_millis(100);
        let mut stream = ExpiringStream::new(Box::new(here), until);
        there.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        // Waits for bytes that never come; the read is woken when the time is over.
        let error = stream.read_exact(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(SystemTime::now() >= until);
        stream.write_all(b"more").await.unwrap_err();
    }
}
