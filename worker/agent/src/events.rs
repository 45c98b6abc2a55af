//! Writes events like kubelet's: `v1.Event` with source kubelet; repeated events are counted instead of
//! written again. A bounded queue and a budget for each object keep a broken pod from flooding the API
//! server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use proto_env::supervise;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{clock, pod};

const QUEUE: usize = 1024;
const KNOWN: usize = 4096;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const DEADLINE: Duration = Duration::from_secs(10);
const COMPONENT: &str = "kubelet";

/// Returns the field path of a container in its pod: `spec.containers{NAME}`, or the same for init and
/// ephemeral containers.
pub fn container_path(pod: &Pod, name: &str) -> String {
    let spec = pod::spec(pod);
    if pod::is_init(spec, name) {
        format!("spec.initContainers{{{name}}}")
    } else if spec.ephemeral_containers.iter().flatten().any(|c| c.name == name) {
        format!("spec.ephemeralContainers{{{name}}}")
    } else {
        format!("spec.containers{{{name}}}")
    }
}

#[derive(Clone, Debug)]
struct NewEvent {
    involved: ObjectReference,
    type_: &'static str,
    reason: String,
    message: String,
}

/// A handle for writing events; its methods never block.
#[derive(Clone, Debug)]
pub struct Events {
    node: String,
    queue: mpsc::Sender<NewEvent>,
}

impl Events {
    /// Starts the task that writes events until `shutdown`.
    pub fn start(client: Client, node: &str, shutdown: CancellationToken) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let writer =
            Writer { client, node: node.to_owned(), known: BTreeMap::new(), budgets: BTreeMap::new() };
        tokio::spawn(writer.run(notes, shutdown));
        Self { node: node.to_owned(), queue }
    }

    /// Queues a Normal event about a pod, or about the part of it named by `path`.
    pub fn pod_normal(&self, pod: &Pod, path: Option<&str>, reason: &str, message: impl Into<String>) {
        self.pod_event(pod, path, "Normal", reason, message.into());
    }

    /// Queues a Warning event about a pod, or about the part of it named by `path`.
    pub fn pod_warning(&self, pod: &Pod, path: Option<&str>, reason: &str, message: impl Into<String>) {
        self.pod_event(pod, path, "Warning", reason, message.into());
    }

    fn pod_event(&self, pod: &Pod, path: Option<&str>, type_: &'static str, reason: &str, message: String) {
        let involved = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: path.map(str::to_owned),
        };
        self.send(NewEvent { involved, type_, reason: reason.to_owned(), message });
    }

    /// Queues a Normal event about the node.
    pub fn node_normal(&self, node: &Node, reason: &str, message: impl Into<String>) {
        let involved = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            // As in kubelet, the UID field holds the node's name.
            uid: node.metadata.name.clone(),
            ..Default::default()
        };
        self.send(NewEvent { involved, type_: "Normal", reason: reason.to_owned(), message: message.into() });
    }

    fn send(&self, note: NewEvent) {
        if let Err(error) = self.queue.try_send(note) {
            debug!(%error, "event dropped");
        }
    }
}

struct WrittenEvent {
    name: String,
    count: i32,
}

struct Writer {
    client: Client,
    node: String,
    known: BTreeMap<String, WrittenEvent>,
    budgets: BTreeMap<String, (f64, Instant)>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<NewEvent>, shutdown: CancellationToken) {
        loop {
            let note = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                note = notes.recv() => note,
            };
            let Some(note) = note else { return };
            if !self.within_budget(&note) {
                continue;
            }
            let write = tokio::time::timeout(DEADLINE, self.write(&note));
            match supervise::catch("agent-events", write).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => debug!(%error, reason = note.reason, "event not written"),
                Ok(Err(_)) => debug!(reason = note.reason, "event not written in time"),
                Err(error) => debug!(%error, reason = note.reason, "event not written"),
            }
        }
    }

    fn within_budget(&mut self, note: &NewEvent) -> bool {
        let key = note.involved.uid.clone().unwrap_or_default();
        let now = Instant::now();
        if self.budgets.len() > KNOWN {
            self.budgets.clear();
        }
        let (tokens, at) = self.budgets.entry(key).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    async fn write(&mut self, note: &NewEvent) -> Result<(), kube::Error> {
        let namespace = note.involved.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let involved = &note.involved;
        let path = involved.field_path.as_deref().unwrap_or_default();
        let uid = involved.uid.as_deref().unwrap_or_default();
        let key = format!("{uid}/{path}/{}/{}/{}", note.type_, note.reason, note.message);
        if let Some(known) = self.known.get_mut(&key) {
            known.count += 1;
            let patch = json!({"count": known.count, "lastTimestamp": clock::now()});
            match events.patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => return Ok(()),
                // The event has expired on the server: create a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{:x}", involved.name.as_deref().unwrap_or_default(), clock::now_nanos());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: involved.clone(),
            type_: Some(note.type_.to_owned()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            count: Some(1),
            first_timestamp: Some(clock::now()),
            last_timestamp: Some(clock::now()),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Default::default()
        };
        events.create(&PostParams::default(), &event).await?;
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(key, WrittenEvent { name, count: 1 });
        Ok(())
    }
}
