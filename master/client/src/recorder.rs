//! Records Events as client-go's recorder does: core/v1 Events whose count grows when the same event
//! repeats, and at most a burst of Events about one object. Called by controllers and the scheduler, which
//! never wait for it; writes the Events to the API one after another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use proto_env::{Clock, supervise};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Maximum number of events waiting to be written; further ones are dropped, as in client-go.
const QUEUE: usize = 1000;
/// Maximum number of distinct events that are remembered for counting repeats.
const REMEMBERED: usize = 4096;
/// Maximum number of events about one object in a burst.
const BURST: f64 = 25.0;
/// Seconds until an object whose burst is used up may have one more event.
const REFILL_SECONDS: f64 = 300.0;
/// Deadline of a write, after which the event is dropped.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Maximum length of a message that the API accepts, in bytes.
const MESSAGE_MAX_BYTES: usize = 1024;
/// Maximum length of an object's name, in bytes.
const NAME_MAX_BYTES: usize = 253;

/// The two types of Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// An expected event.
    Normal,
    /// An event that may need attention.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

struct Record {
    about: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
}

/// Records the events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Record>,
}

impl Recorder {
    /// Starts the writer for `component` (`deployment-controller`, `default-scheduler`, ...). It ends with
    /// `shutdown` or with the last clone of the recorder.
    pub fn start(
        client: Client,
        component: &'static str,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            component,
            clock,
            seen: BTreeMap::new(),
            order: VecDeque::new(),
            spam: BTreeMap::new(),
        };
        // After a panic events are lost and the callers do not notice, since nothing may depend on events.
        tokio::spawn(async move {
            drop(supervise::catch("event-recorder", writer.run(receiver, shutdown)).await)
        });
        Self { sender }
    }

    /// Records an event about the object `about`.
    pub fn event(
        &self,
        about: ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let record = Record { about, event_type, reason: reason.to_owned(), message: message.into() };
        if let Err(mpsc::error::TrySendError::Full(record)) = self.sender.try_send(record) {
            tracing::warn!(reason = record.reason, message = record.message, "event dropped: too many wait");
        }
    }
}

/// Creates a reference to `object` as Events contain it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

struct RecordedEvent {
    name: String,
    count: i32,
}

/// Identity of an event for counting repeats: object, type, reason, message.
type EventIdentity = (String, &'static str, String, String);

struct Writer {
    client: Client,
    component: &'static str,
    clock: Arc<dyn Clock>,
    seen: BTreeMap<EventIdentity, RecordedEvent>,
    order: VecDeque<EventIdentity>,
    /// Token bucket of each object: tokens left, and when they were counted.
    spam: BTreeMap<String, (f64, Duration)>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Record>, shutdown: CancellationToken) {
        loop {
            let record = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                record = receiver.recv() => record,
            };
            let Some(record) = record else { return };
            let write = tokio::time::timeout(WRITE_DEADLINE, self.write(record));
            let result = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = write => result,
            };
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "event not written"),
                Err(_) => tracing::debug!("event not written within its deadline"),
            }
        }
    }

    async fn write(&mut self, mut record: Record) -> Result<(), kube::Error> {
        truncate(&mut record.message);
        let object = format!(
            "{}/{}/{}/{}",
            record.about.kind.as_deref().unwrap_or_default(),
            record.about.namespace.as_deref().unwrap_or_default(),
            record.about.name.as_deref().unwrap_or_default(),
            record.about.uid.as_deref().unwrap_or_default(),
        );
        if !self.allowed(&object) {
            return Ok(());
        }
        let now = Timestamp::try_from(self.clock.now()).unwrap_or_default();
        let namespace = record.about.namespace.clone().filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let same = (object, record.event_type.as_str(), record.reason.clone(), record.message.clone());
        if let Some(seen) = self.seen.get_mut(&same) {
            seen.count += 1;
            let patch = serde_json::json!({ "count": seen.count, "lastTimestamp": Time(now) });
            match events.patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => return result.map(drop),
            }
        }
        let name = event_name(&record.about, now);
        let event = self.event(&name, &namespace, record, now);
        events.create(&PostParams::default(), &event).await?;
        self.remember(same, RecordedEvent { name, count: 1 });
        Ok(())
    }

    fn event(&self, name: &str, namespace: &str, record: Record, now: Timestamp) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: record.about,
            reason: Some(record.reason),
            message: Some(record.message),
            type_: Some(record.event_type.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.component.to_owned()), host: None }),
            reporting_component: Some(self.component.to_owned()),
            ..Event::default()
        }
    }

    fn remember(&mut self, same: EventIdentity, seen: RecordedEvent) {
        if self.seen.insert(same.clone(), seen).is_none() {
            self.order.push_back(same);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }

    /// Takes a token from the object's bucket; false when it is empty.
    fn allowed(&mut self, object: &str) -> bool {
        let now = self.clock.monotonic();
        if self.spam.len() > REMEMBERED {
            self.spam.retain(|_, (_, at)| now.saturating_sub(*at).as_secs_f64() < REFILL_SECONDS);
        }
        if self.spam.len() > REMEMBERED {
            self.spam.clear();
        }
        let (tokens, at) = self.spam.entry(object.to_owned()).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_sub(*at).as_secs_f64() / REFILL_SECONDS).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

/// Returns a name that no other event has: the object's name, or its UID where that would be too long, and the time.
fn event_name(about: &ObjectReference, now: Timestamp) -> String {
    let of =
        |part: &Option<String>| format!("{}.{:x}", part.as_deref().unwrap_or_default(), now.as_nanosecond());
    let name = of(&about.name);
    if name.len() > NAME_MAX_BYTES { of(&about.uid) } else { name }
}

/// Cuts a message to the length that the API accepts, at a character boundary.
fn truncate(message: &mut String) {
    if message.len() > MESSAGE_MAX_BYTES {
        let mut end = MESSAGE_MAX_BYTES - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_about_objects_with_the_longest_names_have_valid_names() {
        let about = |name: &str| ObjectReference {
            name: Some(name.to_owned()),
            uid: Some("0f1e2d3c".to_owned()),
            ..ObjectReference::default()
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(event_name(&about("web"), now), "web.18fae27693b40000");
        assert_eq!(event_name(&about(&"a".repeat(253)), now), "0f1e2d3c.18fae27693b40000");
    }
}
