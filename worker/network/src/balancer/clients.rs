//! Limits on the number of client connections of one listener, in total and per client address. The agent's
//! listener and the pods' have separate limits (`mod.rs`).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits on the connections of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Maximum number of open connections; further clients wait in the listener's backlog.
    pub total: usize,
    /// Maximum number of open connections per client address; further ones are reset. `None` means `total`.
    pub per_client: Option<usize>,
}

impl ListenerLimits {
    /// Limits for clients on the host itself: the agent, operators.
    pub const HOST: Self = Self { total: 4096, per_client: None };
    /// Limits for pods: no pod can use up the connections of the others.
    pub const PODS: Self = Self { total: 4096, per_client: Some(256) };
}

/// Counts the connections of one listener.
#[derive(Debug)]
pub(super) struct Clients {
    total: Arc<Semaphore>,
    per_client: Option<usize>,
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// A connection that is counted until this value is dropped.
#[derive(Debug)]
pub(super) struct CountedConnection {
    _place: OwnedSemaphorePermit,
    client: IpAddr,
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Clients {
    pub(super) fn new(limits: ListenerLimits) -> Self {
        Self {
            total: Arc::new(Semaphore::new(limits.total)),
            per_client: limits.per_client,
            counts: Arc::default(),
        }
    }

    /// Waits until the listener has fewer connections than its limit, and reserves one connection.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        match self.total.clone().acquire_owned().await {
            Ok(place) => place,
            // Only a closed semaphore fails, and this one is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Admits a connection of `client`; `None` if the client has reached its limit.
    pub(super) fn admit(&self, place: OwnedSemaphorePermit, client: IpAddr) -> Option<CountedConnection> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        if self.per_client.is_some_and(|limit| *count >= limit) {
            return None;
        }
        *count += 1;
        Some(CountedConnection { _place: place, client, counts: self.counts.clone() })
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}
