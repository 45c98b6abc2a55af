//! A simulated worker: registers a Node, sends heartbeats to the leader over the same stream as a real one,
//! and reports every pod bound to it as running. It runs no containers: the tests judge how masters react to
//! workers that die (`world.rs`).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chaos_spec::NodeName;
use http::{Method, StatusCode};
use master_node::SENDS_BEATS;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, PeerIdentity, Purpose};
use proto_wire::cluster::NodeBeat;
use proto_wire::cluster::liveness_client::LivenessClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::http::{Client, client, client_as};
use crate::machine::PEER_PORT;
use crate::scale::Scale;
use crate::seams::network::SimNetwork;
use crate::seams::random::generator;
use crate::workload::Workload;

/// Interval of heartbeats, as of a real worker.
const BEAT: Duration = Duration::from_millis(1000);
const ANSWER: Duration = Duration::from_millis(1500);
const RETRY: Duration = Duration::from_millis(200);

/// A simulated worker.
pub struct Worker {
    /// Name of the node: `w1`, `w2`, ...
    pub node: NodeName,
    /// IP address of the worker.
    pub ip: IpAddr,
    name: String,
    workload: Workload,
    /// Interval at which it looks at its pods.
    interval: Duration,
    /// Whether the worker is paused: its tasks wait, and its connections stay open.
    paused: AtomicBool,
}

impl Worker {
    /// Creates a worker that is not yet running.
    pub fn new(node: NodeName, workload: &Workload, scale: Scale) -> Arc<Self> {
        let ip = IpAddr::from([10, 0, 1, u8::try_from(node.number()).unwrap_or(u8::MAX)]);
        let (name, workload, paused) = (node.to_string(), workload.clone(), AtomicBool::new(false));
        Arc::new(Self { node, ip, name, workload, interval: scale.look, paused })
    }

    /// Pauses the worker, or lets it continue.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Runs the worker until turmoil stops it.
    pub async fn run(self: Arc<Self>) {
        self.pause(false);
        let mut random = generator(self.workload.seed, 3000 + u64::from(self.node.number()));
        tokio::spawn(self.clone().beat());
        let mut at = self.workload.any_master(&mut random);
        let mut client = self.client(at);
        loop {
            // Like a real worker, it stays with a master that serves it and leaves one that does not.
            if self.look(&mut client).await.is_none() {
                tokio::time::sleep(RETRY).await;
                at = self.workload.another_master(at, &mut random);
                client = self.client(at);
            }
            self.rest(self.interval).await;
        }
    }

    /// Waits for `pause`, and then for as long as the worker is paused.
    async fn rest(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        while self.paused.load(Ordering::Relaxed) {
            tokio::time::sleep(RETRY).await;
        }
    }

    fn client(&self, at: IpAddr) -> Client {
        client_as(at, self.workload.links.clone(), self.identity())
    }

    fn identity(&self) -> PeerIdentity {
        PeerIdentity {
            common_name: format!("system:node:{}", self.name),
            organizations: vec!["system:nodes".to_owned()],
        }
    }

    /// Sends heartbeats to the leader.
    async fn beat(self: Arc<Self>) {
        let mut sequence = 0;
        loop {
            for master in self.workload.masters() {
                while let Some(true) = self.beats(master, &mut sequence).await {}
            }
            self.rest(RETRY).await;
        }
    }

    /// Sends heartbeats to one master while it leads and answers.
    async fn beats(&self, master: IpAddr, sequence: &mut u64) -> Option<bool> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: ANSWER,
        };
        let network = Arc::new(SimNetwork::of_host(self.workload.links.clone(), self.identity()));
        let channel = channel(network, &format!("{master}:{PEER_PORT}"), options).ok()?;
        let (sender, receiver) = mpsc::channel(2);
        sender.send(self.next(sequence)).await.ok()?;
        let mut client = LivenessClient::new(channel);
        let stream = client.beat(ReceiverStream::new(receiver));
        let mut answers = tokio::time::timeout(ANSWER, stream).await.ok()?.ok()?.into_inner();
        loop {
            let answer = tokio::time::timeout(ANSWER, answers.message()).await.ok()?.ok()??;
            if !answer.leading {
                return None;
            }
            self.rest(BEAT).await;
            sender.send(self.next(sequence)).await.ok()?;
        }
    }

    fn next(&self, sequence: &mut u64) -> NodeBeat {
        *sequence += 1;
        NodeBeat { node: self.name.clone(), sequence: *sequence, ready: true, ..NodeBeat::default() }
    }

    /// Registers the node and reports its pods as running; `None` if a request failed.
    async fn look(&self, client: &mut Client) -> Option<()> {
        let node = format!("/api/v1/nodes/{}", self.name);
        let known = client.ask(Method::GET, &node, None).await.ok()?;
        if known.status == StatusCode::NOT_FOUND {
            let made = client.ask(Method::POST, "/api/v1/nodes", Some(&self.object())).await.ok()?;
            tracing::info!(target: "chaos", worker = self.name, status = %made.status, "a worker registers");
        } else if !known.status.is_success() {
            return None;
        }
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name);
        let pods = client.ask(Method::GET, &path, None).await.ok()?;
        if !pods.status.is_success() {
            tracing::info!(target: "chaos", worker = self.name, status = %pods.status, body = %pods.body, "no pods");
            return None;
        }
        for pod in pods.body["items"].as_array().into_iter().flatten() {
            self.serve(client, pod).await?;
        }
        Some(())
    }

    async fn serve(&self, client: &mut Client, pod: &Value) -> Option<()> {
        let meta = &pod["metadata"];
        let (namespace, name) = (meta["namespace"].as_str()?, meta["name"].as_str()?);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        if !meta["deletionTimestamp"].is_null() {
            let options = json!({
                "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
                "preconditions": {"uid": meta["uid"]},
            });
            client.ask(Method::DELETE, &path, Some(&options)).await.ok()?;
        } else if pod["status"]["phase"] != "Running" {
            let mut running = pod.clone();
            running["apiVersion"] = "v1".into();
            running["kind"] = "Pod".into();
            running["status"]["phase"] = "Running".into();
            let ready = json!([{"type": "Ready", "status": "True"}]);
            running["status"]["conditions"] = ready;
            let answer = client.ask(Method::PUT, &format!("{path}/status"), Some(&running)).await.ok()?;
            if !answer.status.is_success() && answer.status != StatusCode::CONFLICT {
                tracing::info!(target: "chaos", worker = self.name, body = %answer.body, "no status");
            }
        }
        Some(())
    }

    fn object(&self) -> Value {
        let amounts = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {"kubernetes.io/hostname": self.name},
                "annotations": {SENDS_BEATS: "true"},
            },
            "status": {
                "capacity": amounts, "allocatable": amounts,
                "addresses": [{"type": "InternalIP", "address": self.ip.to_string()}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        })
    }
}

/// Store prefix of the workers' pods.
pub const PODS: &str = "/registry/core/pods/default/";
/// Number of pods per worker.
const PODS_EACH: u32 = 2;

/// Returns the number of pods for this number of workers.
pub fn replicas(workers: u32) -> u32 {
    workers * PODS_EACH
}

/// Creates the Deployment of the pods, retrying until a master has accepted it.
pub async fn deploy(workload: Workload, workers: u32) {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "served", "namespace": "default"},
        "spec": {
            "replicas": replicas(workers),
            "selector": {"matchLabels": {"app": "served"}},
            "template": {
                "metadata": {"labels": {"app": "served"}},
                "spec": {"containers": [{"name": "main", "image": "example.test/served:1"}]},
            },
        },
    });
    let mut random = generator(workload.seed, 2999);
    loop {
        let mut client = client(workload.any_master(&mut random), workload.links.clone());
        let path = "/apis/apps/v1/namespaces/default/deployments";
        match client.ask(Method::POST, path, Some(&deployment)).await {
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::CONFLICT => return,
            Ok(answer) => tracing::info!(target: "chaos", body = %answer.body, "no deployment yet"),
            Err(failure) => tracing::info!(target: "chaos", ?failure, "no deployment yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns the worker on which a pod runs; `None` if it does not run or is being deleted.
pub fn runs_on(pod: &[u8]) -> Option<NodeName> {
    let pod: Value = serde_json::from_slice(pod).ok()?;
    let stays = pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
    pod["spec"]["nodeName"].as_str().filter(|_| stays)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_about_to_go_runs_nowhere() {
        let pod = |phase: &str, deleted: Value| {
            json!({
                "metadata": {"name": "a", "deletionTimestamp": deleted},
                "spec": {"nodeName": "w2"}, "status": {"phase": phase},
            })
            .to_string()
        };
        assert_eq!(runs_on(pod("Running", Value::Null).as_bytes()), NodeName::worker(2));
        assert_eq!(runs_on(pod("Pending", Value::Null).as_bytes()), None);
        assert_eq!(runs_on(pod("Running", "2027-01-01T00:00:00Z".into()).as_bytes()), None);
    }
}
