//! Notices a master that has been sent something and gives nothing back: the reason for a probe at once,
//! so that masters need not be probed often while nothing is wrong. Written by the relayed connections of
//! `mod.rs`, read by `members`.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

/// When bytes last went to a master and came from it, over all connections. Times are milliseconds since
/// `start`, 0 for never.
#[derive(Debug)]
pub(super) struct Traffic {
    start: Instant,
    /// When the first byte was sent that came after the last received one.
    sent: AtomicU64,
    received: AtomicU64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { start: Instant::now(), sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }
}

impl Traffic {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn sent(&self) {
        if self.sent.load(Ordering::Relaxed) <= self.received.load(Ordering::Relaxed) {
            self.sent.store(self.now(), Ordering::Relaxed);
        }
    }

    fn received(&self) {
        self.received.store(self.now(), Ordering::Relaxed);
    }

    /// Whether something was sent at least `limit` ago and nothing at all came back since.
    pub(super) fn is_stalled(&self, limit: Duration) -> bool {
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        sent > received && u128::from(self.now().saturating_sub(sent)) >= limit.as_millis()
    }
}

/// A connection to a master whose bytes are noted.
pub(super) struct NotedStream {
    pub(super) stream: TcpStream,
    pub(super) traffic: Arc<Traffic>,
}

impl AsyncRead for NotedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_ready() {
            // The end of the stream is a sign of life too.
            self.traffic.received();
        }
        result
    }
}

impl AsyncWrite for NotedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.traffic.sent();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_master_is_stalled_once_what_was_sent_has_waited_long_enough() {
        let (traffic, limit) = (Traffic::default(), Duration::from_millis(300));
        assert!(!traffic.is_stalled(limit), "nothing was sent");
        traffic.sent();
        tokio::time::advance(Duration::from_millis(200)).await;
        // Sending more does not begin the wait anew.
        traffic.sent();
        assert!(!traffic.is_stalled(limit));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(traffic.is_stalled(limit));
        traffic.received();
        assert!(!traffic.is_stalled(limit), "it has answered");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!traffic.is_stalled(limit), "nothing was sent since");
    }
}
