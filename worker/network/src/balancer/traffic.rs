//! Detects a master that does not answer what was sent to it, which is a reason to probe it at
//! once; so masters need fewer periodic probes. Written by the relayed connections of `mod.rs`,
//! read by the master's watcher.

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

/// Times at which bytes were sent to a master and received from it, over all connections. Milliseconds
/// since `start`; 0 for never.
#[derive(Debug)]
pub(super) struct Traffic {
    start: Instant,
    /// Time of the first byte sent after the last received one.
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

    /// Returns whether something was sent at least `limit` ago and nothing was received since.
    pub(super) fn is_stalled(&self, limit: Duration) -> bool {
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        sent > received && u128::from(self.now().saturating_sub(sent)) >= limit.as_millis()
    }
}

/// A connection to a master that records in [`Traffic`] when bytes pass.
pub(super) struct TrackedStream {
    pub(super) stream: TcpStream,
    pub(super) traffic: Arc<Traffic>,
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_ready() {
            // The end of the stream also shows that the master is alive.
            self.traffic.received();
        }
        result
    }
}

impl AsyncWrite for TrackedStream {
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
        // Records only the first send since the last receive: further sends do not restart the wait.
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
