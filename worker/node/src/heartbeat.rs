//! Sends heartbeats ("beats") to the leader over a stream, about one a second. The answers name the leader
//! and the masters; the balancer and the overlay follow the masters published here. If the stream breaks, the
//! other masters are tried at once; a master that does not lead names the leader.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use proto_wire::cluster::liveness_client::LivenessClient;
use proto_wire::cluster::{BeatAck, Certificate, NodeBeat};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use worker_agent::{CertificateEnds, NodeHealth};

use crate::credentials::Master;

/// Time between beats.
const INTERVAL: Duration = Duration::from_millis(1000);
/// Maximum wait for the answer to a beat before another master is tried.
const ACK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause between rounds over all masters if none answers as leader.
const RETRY: Duration = Duration::from_millis(150);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Sends beats until `shutdown` and publishes the masters named in the answers.
pub struct Heartbeat {
    /// Name of the node.
    pub node: String,
    /// Peer network, using the node's certificate.
    pub network: Arc<dyn Network>,
    /// The agent's health report on this node, sent with every beat.
    pub health: watch::Receiver<NodeHealth>,
    /// When the node's certificates end, sent with every beat.
    pub certificates: watch::Receiver<CertificateEnds>,
    /// Channel on which the masters are published.
    pub masters: watch::Sender<Vec<Master>>,
}

/// Order in which masters are tried.
#[derive(Debug, Default)]
struct LeaderSearch {
    /// The leader named by a master that does not lead, until it has been tried; `None` if none was named.
    named: Option<String>,
}

impl LeaderSearch {
    /// Orders the masters to try: the named leader first.
    fn order(&self, mut masters: Vec<String>) -> Vec<String> {
        masters.sort_by_key(|master| self.named.as_ref() != Some(master));
        masters
    }

    /// Records which leader `address` named when beating to it ended (`None` if it named none or did not
    /// answer). Returns whether to start over with the named leader. A leader that does not answer stops
    /// being the named one: waiting for it alone would keep the node silent while that master is down.
    fn ended(&mut self, address: &str, named: Option<String>) -> bool {
        self.named = named.filter(|leader| leader != address);
        self.named.is_some()
    }
}

impl Heartbeat {
    /// Sends beats until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut search = LeaderSearch::default();
        loop {
            let addresses = self.masters.borrow().iter().map(|m| m.peer.clone()).collect();
            for address in search.order(addresses) {
                let ended = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    ended = self.beat(&address) => ended,
                };
                if let Err(error) = &ended {
                    tracing::debug!(address, %error, "a beat was not answered");
                }
                if search.ended(&address, ended.ok().flatten()) {
                    break;
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Creates a channel to one master.
    pub fn channel(network: &Arc<dyn Network>, address: &str) -> Result<Channel, tonic::transport::Error> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: CONNECT_TIMEOUT,
        };
        channel(network.clone(), address, options)
    }

    /// Sends beats to one master until it fails or no longer leads; returns the leader it names, `None` if it
    /// names none.
    async fn beat(&self, address: &str) -> Result<Option<String>, tonic::Status> {
        let channel =
            Self::channel(&self.network, address).map_err(|e| tonic::Status::from_error(Box::new(e)))?;
        let (sender, receiver) = mpsc::channel(2);
        let mut sequence = 1;
        send(&sender, self.next(sequence)).await?;
        let mut master = LivenessClient::new(channel);
        let mut acks = deadline(master.beat(ReceiverStream::new(receiver))).await?.into_inner();
        let mut health = self.health.clone();
        loop {
            let ack = deadline(acks.message()).await?;
            let Some(ack) = ack else { return Ok(None) };
            self.publish(&ack);
            if !ack.leading {
                return Ok(Some(ack.leader_peer_address).filter(|l| !l.is_empty()));
            }
            // A change of health is sent at once, without waiting for the interval.
            tokio::select! {
                biased;
                Ok(()) = health.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            sequence += 1;
            send(&sender, self.next(sequence)).await?;
        }
    }

    fn next(&self, sequence: u64) -> NodeBeat {
        let health = self.health.borrow().clone();
        let ends = self.certificates.borrow().clone();
        let certificates = ends.into_iter().map(|(name, end)| {
            let not_after = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            Certificate { name: name.to_owned(), not_after }
        });
        NodeBeat {
            node: self.node.clone(),
            sequence,
            ready: health.ready,
            reason: health.reason,
            certificates: certificates.collect(),
        }
    }

    fn publish(&self, ack: &BeatAck) {
        let members: Vec<Master> = ack
            .members
            .iter()
            .map(|m| Master { peer: m.peer_address.clone(), api: m.api_address.clone() })
            .collect();
        self.masters.send_if_modified(|known| {
            let changed = !members.is_empty() && *known != members;
            if changed {
                *known = members;
            }
            changed
        });
    }
}

async fn send(sender: &mpsc::Sender<NodeBeat>, beat: NodeBeat) -> Result<(), tonic::Status> {
    sender.send(beat).await.map_err(|_| tonic::Status::unavailable("the stream has ended"))
}

async fn deadline<T>(work: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    tokio::time::timeout(ACK_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masters() -> Vec<String> {
        ["m1", "m2", "m3"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_named_leader_that_does_not_answer_holds_up_nobody() {
        let mut search = LeaderSearch::default();
        assert_eq!(search.order(masters()), masters());
        assert!(search.ended("m1", Some("m3".to_owned())), "m3 is tried at once");
        assert_eq!(search.order(masters()), ["m3", "m1", "m2"]);
        // The named leader has died: the other masters are tried in the same round.
        assert!(!search.ended("m3", None));
        assert_eq!(search.order(masters()), masters());
    }

    #[test]
    fn a_master_that_names_itself_without_leading_is_not_asked_again_at_once() {
        let mut search = LeaderSearch::default();
        assert!(!search.ended("m1", Some("m1".to_owned())));
    }
}
