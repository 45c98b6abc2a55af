//! Connections to other masters: one channel per peer and lane, so that a large append or a snapshot delays
//! neither heartbeats nor votes. [`client`] implements openraft's network, [`append`] carries log entries,
//! [`snapshot`] snapshots.

mod append;
pub(crate) mod client;
pub(crate) mod open_call;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto_env::grpc::{self, ChannelOptions};
use proto_env::{MASTERS_ORGANIZATION, Network, PriorityRuntime, Purpose};
use proto_wire::MESSAGE_LIMIT_BYTES;
use proto_wire::raft::raft_client::RaftClient;
use tokio::sync::{Notify, watch};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::fence::SUPERSEDED_KEY;
use crate::types::NodeId;

/// Metadata key of every call: the id of the caller's cluster.
pub(crate) const CLUSTER_KEY: &str = "ephor-cluster-id";
/// Metadata key of every call: the caller's id. [`ADDRESS_KEY`] has the address on which it listens.
pub(crate) const NODE_ID_KEY: &str = "ephor-node-id";
/// Metadata key of every call: the id of the master that is called. An address may have passed to another
/// master, and a master that answered for two would count twice in a quorum.
pub(crate) const TARGET_KEY: &str = "ephor-target-id";
pub(crate) const ADDRESS_KEY: &str = "ephor-peer-address";

/// Number of calls in a row without an answer after which a control lane reconnects.
const LATE_HEARTBEATS: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The purpose of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Heartbeats, votes and read indexes: small and urgent.
    Control,
    /// Log entries.
    Append,
    /// Forwarded proposals and membership changes.
    Forward,
    /// Snapshots.
    Snapshot,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Status(#[from] Box<tonic::Status>),
    #[error("{0}")]
    Local(String),
}

impl CallError {
    /// Returns whether the call certainly never reached the other side because there was no connection.
    pub(crate) fn never_sent(&self) -> bool {
        let Self::Status(status) = self else { return matches!(self, Self::Local(_)) };
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status.as_ref());
        while let Some(error) = cause {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(
                kind,
                Some(
                    ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
                )
            ) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Channels to the other masters, and what is known of their addresses.
pub(crate) struct Peers {
    network: Arc<dyn Network>,
    /// The runtime that connections run on.
    runtime: Arc<PriorityRuntime>,
    me: NodeId,
    /// This master's id, its peer address, and its cluster's id, as sent with every call.
    identity: (MetadataValue<Ascii>, MetadataValue<Ascii>, MetadataValue<Ascii>),
    channels: Mutex<BTreeMap<(NodeId, Lane), (String, Channel)>>,
    /// Number of calls in a row without an answer.
    silent: Mutex<BTreeMap<(NodeId, Lane), u32>>,
    /// Notified when a peer should hear the committed index at once.
    urges: Mutex<BTreeMap<NodeId, Arc<Notify>>>,
    /// Whether this replica differs from the others, so that no peer may get its state.
    quarantined: AtomicBool,
    /// Addresses that peers sent with their calls, newer than those of the membership.
    learned: Mutex<BTreeMap<NodeId, String>>,
    /// Addresses of the present membership; openraft gives a client only the address with which it was
    /// made.
    members: Mutex<BTreeMap<NodeId, String>>,
    /// Id of the cluster that replaces this one; empty until a peer has told it.
    superseded: watch::Sender<String>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        runtime: Arc<PriorityRuntime>,
        cluster_id: &str,
        me: NodeId,
        address: &str,
    ) -> Result<Arc<Self>, String> {
        let address = address.parse().map_err(|_| format!("{address:?} is not a peer address"))?;
        let cluster = cluster_id.parse().map_err(|_| format!("{cluster_id:?} is not a cluster's id"))?;
        let identity = (MetadataValue::from(me), address, cluster);
        let (channels, silent, urges, learned, members, quarantined, superseded) = Default::default();
        Ok(Arc::new(Self {
            network,
            runtime,
            me,
            identity,
            channels,
            silent,
            urges,
            quarantined,
            learned,
            members,
            superseded,
        }))
    }

    /// Returns the runtime that connections run on.
    pub(crate) fn runtime(&self) -> &PriorityRuntime {
        &self.runtime
    }

    /// Sets whether this replica differs from the others, so that no peer may get its state.
    pub(crate) fn set_quarantined(&self, quarantined: bool) {
        self.quarantined.store(quarantined, Ordering::Release);
    }

    /// Returns whether this replica differs from the others, so that no peer may get its state.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Remembers the address on which a peer says it listens.
    pub(crate) fn learn(&self, node: NodeId, address: &str) {
        if node == self.me {
            return;
        }
        let mut learned = lock(&self.learned);
        if learned.get(&node).is_none_or(|known| known != address) {
            learned.insert(node, address.to_owned());
        }
    }

    /// Returns the addresses on which peers say they listen.
    pub(crate) fn learned(&self) -> BTreeMap<NodeId, String> {
        lock(&self.learned).clone()
    }

    /// Sets the addresses of the present membership.
    pub(crate) fn members(&self, addresses: impl Iterator<Item = (NodeId, String)>) {
        *lock(&self.members) = addresses.collect();
    }

    /// Watches the id of the cluster that replaces this one; empty until a peer has told it.
    pub(crate) fn superseded(&self) -> watch::Receiver<String> {
        self.superseded.subscribe()
    }

    /// Waits for a call, and notes it if the answer says that this cluster is superseded.
    pub(crate) async fn noting<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<tonic::Response<T>, tonic::Status> {
        call.await.inspect_err(|status| self.note(status))
    }

    fn note(&self, status: &tonic::Status) {
        if let Some(Ok(by)) = status.metadata().get(SUPERSEDED_KEY).map(|by| by.to_str()) {
            self.superseded.send_replace(by.to_owned());
        }
    }

    /// Turns the status that ended a call over `lane` into an error, and forgets a learned address that was
    /// wrong.
    pub(crate) fn refused(&self, node: NodeId, lane: Lane, status: tonic::Status) -> CallError {
        self.note(&status);
        if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::FailedPrecondition) {
            let channels = lock(&self.channels);
            let called = channels.get(&(node, lane)).map(|(address, _)| address);
            let mut learned = lock(&self.learned);
            // The learned address is no longer that of this peer. If an earlier address was called, the
            // learned one may still be right.
            if learned.get(&node) == called {
                learned.remove(&node);
            }
        }
        Box::new(status).into()
    }

    /// Returns what is notified when `node` should hear the committed index at once.
    pub(crate) fn urges(&self, node: NodeId) -> Arc<Notify> {
        lock(&self.urges).entry(node).or_default().clone()
    }

    /// Drops a lane's channel: the next use of the lane reconnects.
    pub(crate) fn forget(&self, node: NodeId, lane: Lane) {
        lock(&self.channels).remove(&(node, lane));
    }

    /// Returns a client for `node`; `address` is used if no newer address is known.
    pub(crate) fn client(
        &self,
        node: NodeId,
        address: &str,
        lane: Lane,
    ) -> Result<RaftClient<Channel>, CallError> {
        let learned = lock(&self.learned).get(&node).cloned();
        let known = learned.or_else(|| lock(&self.members).get(&node).cloned());
        let address = known.unwrap_or_else(|| address.to_owned());
        let mut channels = lock(&self.channels);
        let channel = match channels.get(&(node, lane)) {
            Some((known, channel)) if *known == address => channel.clone(),
            _ => {
                let options = ChannelOptions {
                    purpose: Purpose::Peer,
                    organization: Some(MASTERS_ORGANIZATION),
                    connect_timeout: CONNECT_TIMEOUT,
                };
                // The channel spawns the tasks that carry its calls, on this runtime.
                let _there = self.runtime.enter();
                let channel = grpc::channel(self.network.clone(), &address, options)
                    .map_err(|error| CallError::Local(error.to_string()))?;
                channels.insert((node, lane), (address, channel.clone()));
                channel
            }
        };
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES))
    }

    /// Makes a request whose metadata name its sender and its target.
    pub(crate) fn request<T>(&self, target: NodeId, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(TARGET_KEY, MetadataValue::from(target));
        request.metadata_mut().insert(CLUSTER_KEY, self.identity.2.clone());
        request.metadata_mut().insert(NODE_ID_KEY, self.identity.0.clone());
        request.metadata_mut().insert(ADDRESS_KEY, self.identity.1.clone());
        request
    }

    /// Waits for a call's answer until `deadline`. A connection without an answer is not used again,
    /// because something between the masters may drop its packets.
    pub(crate) async fn call<T>(
        &self,
        node: NodeId,
        lane: Lane,
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        let result = tokio::time::timeout(deadline, call).await;
        if result.is_ok() {
            lock(&self.silent).remove(&(node, lane));
        }
        match result {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(node, lane, status)),
            Err(_) => {
                let mut silent = lock(&self.silent);
                let count = silent.entry((node, lane)).or_insert(0);
                *count += 1;
                // On a busy machine a heartbeat is late now and then.
                if lane != Lane::Control || *count >= LATE_HEARTBEATS {
                    silent.remove(&(node, lane));
                    lock(&self.channels).remove(&(node, lane));
                }
                Err(CallError::Timeout(deadline))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto_env::{Blocking, TlsNetwork};

    use super::*;

    #[tokio::test]
    async fn a_refusal_says_nothing_of_an_address_that_was_not_called() {
        let runtime = Arc::new(PriorityRuntime::start(Blocking::Inline, "raft", 1).unwrap());
        let peers = Peers::new(Arc::new(TlsNetwork::joining()), runtime, "c", 1, "127.0.0.1:1").unwrap();
        let called = || {
            peers.client(2, "first", Lane::Append).unwrap();
            lock(&peers.channels)[&(2, Lane::Append)].0.clone()
        };
        let refused = || drop(peers.refused(2, Lane::Append, tonic::Status::unavailable("gone")));
        assert_eq!(called(), "first");
        // The peer calls from a new address while a call to its old one is in progress.
        peers.learn(2, "second");
        refused();
        assert_eq!(called(), "second");
        refused();
        assert_eq!(called(), "first");
        // The membership has changed since openraft made its client.
        peers.members(std::iter::once((2, "third".to_owned())));
        assert_eq!(called(), "third");
        peers.learn(2, "fourth");
        assert_eq!(called(), "fourth");
    }
}
