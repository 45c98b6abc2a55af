//! The streaming server: CRI answers exec, attach and port-forward with a URL, which this server serves. The
//! agent's HTTPS server passes the client's upgraded connection through to it.
//!
//! A URL contains a ticket of 32 random bytes that can be used once and within a minute; the server listens
//! on a local address only. Exec and attach speak WebSocket with `v5.channel.k8s.io` or `v4.channel.k8s.io`;
//! port-forward speaks SPDY/3.1, directly or within a WebSocket (`SPDY/3.1+portforward.k8s.io`).

mod channels;
mod http;
mod portforward;
mod spdy;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::shim::client::ShimClient;

/// Time after its issue during which a ticket can be used.
const LIFETIME: Duration = Duration::from_secs(60);
/// Maximum number of unused tickets; at the limit a new ticket replaces the oldest one.
const TICKETS: usize = 4096;

/// The session that a URL's holder may open once.
pub(crate) enum Ticket {
    Exec {
        shim: ShimClient,
        container: String,
        arguments: Vec<String>,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Attach {
        shim: ShimClient,
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    PortForward {
        /// Path of the pod's network namespace; `None` for the host's.
        namespace: Option<PathBuf>,
    },
}

/// The unused tickets, and the server's address.
pub(crate) struct StreamTickets {
    address: SocketAddr,
    tickets: Mutex<BTreeMap<String, (Instant, Ticket)>>,
}

impl StreamTickets {
    /// Issues a ticket; returns the URL at which it can be used.
    pub fn issue(&self, ticket: Ticket) -> String {
        let kind = match &ticket {
            Ticket::Exec { .. } => "exec",
            Ticket::Attach { .. } => "attach",
            Ticket::PortForward { .. } => "portforward",
        };
        let bytes: [u8; 32] = rand::random();
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let url = format!("http://{}/{kind}/{token}", self.address);
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|_, (issued, _)| issued.elapsed() < LIFETIME);
        if tickets.len() >= TICKETS
            && let Some(oldest) =
                tickets.iter().min_by_key(|(_, (issued, _))| *issued).map(|(token, _)| token.clone())
        {
            tickets.remove(&oldest);
        }
        tickets.insert(token, (Instant::now(), ticket));
        url
    }

    /// Returns the ticket of a token and removes it; `None` if it was used, has expired or never existed.
    fn redeem(&self, token: &str) -> Option<Ticket> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.remove(token).filter(|(issued, _)| issued.elapsed() < LIFETIME).map(|(_, ticket)| ticket)
    }
}

/// Starts the server in the background; it ends with `shutdown`.
pub(crate) async fn start(
    address: SocketAddr,
    shutdown: CancellationToken,
) -> io::Result<Arc<StreamTickets>> {
    let listener = Arc::new(TcpListener::bind(address).await?);
    let streams = Arc::new(StreamTickets { address: listener.local_addr()?, tickets: Mutex::default() });
    let serving = streams.clone();
    tokio::spawn(proto_env::supervise::supervise("runtime-streams", move || {
        accept(listener.clone(), serving.clone(), shutdown.clone())
    }));
    Ok(streams)
}

async fn accept(listener: Arc<TcpListener>, streams: Arc<StreamTickets>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(http::serve(streams.clone(), stream, shutdown.clone()))),
                Err(error) => {
                    // The usual cause is a lack of file descriptors: wait until some are closed.
                    tracing::warn!(%error, "streaming server");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
