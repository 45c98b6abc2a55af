//! Lists and watches the objects of one kind, whole or as metadata only. Created by `informers.rs` and the
//! garbage collector, used by `informer.rs`; sends requests to the API.

use std::fmt::Debug;
use std::future::ready;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, ObjectList, PartialObjectMeta, Request, WatchParams};
use kube::core::{Status, WatchEvent};
use proto_decode::Decoded;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::trim::{Trim, Trimmed};

/// Objects that an informer can hold.
pub trait Object: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

type Events<K> = BoxStream<'static, Result<WatchEvent<Decoded<K>>, kube::Error>>;

/// Maximum number of objects in a page of a list.
const PAGE_SIZE: u32 = 2000;
/// Deadline of one page of a list.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline for the answer to a watch to begin.
const WATCH_DEADLINE: Duration = Duration::from_secs(10);
/// Seconds the server is asked to keep a watch open.
pub(crate) const WATCH_SECONDS: u32 = 290;

/// Lists and watches one kind.
pub struct ListWatch<K: Clone> {
    client: Client,
    request: Request,
    /// Whether only the metadata of objects is requested.
    metadata_only: bool,
    field_selector: Option<String>,
    decode: Decode<K>,
}

/// The decoder of lists, and that of lines of a watch.
struct Decode<K: Clone> {
    list: fn(&str) -> Result<ObjectList<Decoded<K>>, serde_json::Error>,
    event: fn(&str) -> Result<WatchEvent<Decoded<K>>, serde_json::Error>,
}

impl<K: Object> ListWatch<K> {
    /// Lists and watches whole objects through `api`.
    pub fn objects(api: Api<K>) -> Self {
        let request = Request::new(api.resource_url());
        let client = api.into_client();
        Self { client, request, metadata_only: false, field_selector: None, decode: Decode::whole() }
    }

    /// Restricts the list and the watch to objects that a field selector accepts.
    pub fn fields(mut self, selector: &str) -> Self {
        self.field_selector = Some(selector.to_owned());
        self
    }

    /// Returns all objects and the list's revision. With `consistent` the list holds every write
    /// acknowledged before the call; without, it is the state of this master's replica.
    pub(crate) async fn list(&self, consistent: bool) -> Result<(Vec<Decoded<K>>, u64), Error> {
        let mut objects = Vec::new();
        let mut params = ListParams { field_selector: self.field_selector.clone(), ..ListParams::default() };
        if consistent {
            params = params.limit(PAGE_SIZE);
        } else {
            params = params.match_any();
        }
        loop {
            let request = match self.metadata_only {
                true => self.request.list_metadata(&params),
                false => self.request.list(&params),
            };
            let answer = self.client.request_text(request.map_err(kube::Error::BuildRequest)?);
            let text = tokio::time::timeout(LIST_DEADLINE, answer).await.map_err(|_| Error::Deadline)??;
            let page = (self.decode.list)(&text).map_err(kube::Error::SerdeError)?;
            objects.extend(page.items);
            let revision = page.metadata.resource_version;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok((objects, parse_revision("list", revision.as_deref())?)),
            }
        }
    }

    /// Starts a watch of the events after `revision`, with bookmarks.
    pub(crate) async fn watch(&self, revision: u64) -> Result<Events<K>, Error> {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.field_selector.clone_from(&self.field_selector);
        let from = revision.to_string();
        let request = match self.metadata_only {
            true => self.request.watch_metadata(&params, &from),
            false => self.request.watch(&params, &from),
        };
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        let plain = http::HeaderValue::from_static("identity");
        request.headers_mut().insert(http::header::ACCEPT_ENCODING, plain);
        let started = tokio::time::timeout(WATCH_DEADLINE, self.client.request_stream(request));
        let lines = started.await.map_err(|_| Error::Deadline)??.lines();
        let decode = self.decode.event;
        let events = lines.map_err(kube::Error::ReadEvents);
        Ok(events.try_filter_map(move |line| ready(event(decode(&line), &line))).boxed())
    }
}

impl<K: Object> Decode<K> {
    /// Decodes objects as they are.
    fn whole() -> Self {
        Self { list: proto_decode::list, event: proto_decode::event }
    }
}

impl<K: Trim + Object> Decode<K> {
    /// Decodes objects without what their caches leave out.
    fn trimmed() -> Self {
        let list = |text: &str| {
            let ObjectList { types, metadata, items } = proto_decode::list::<Trimmed<K>>(text)?;
            Ok(ObjectList { types, metadata, items: items.into_iter().map(object).collect() })
        };
        let event = |line: &str| {
            Ok(match proto_decode::event::<Trimmed<K>>(line)? {
                WatchEvent::Added(added) => WatchEvent::Added(object(added)),
                WatchEvent::Modified(modified) => WatchEvent::Modified(object(modified)),
                WatchEvent::Deleted(deleted) => WatchEvent::Deleted(object(deleted)),
                WatchEvent::Bookmark(bookmark) => WatchEvent::Bookmark(bookmark),
                WatchEvent::Error(status) => WatchEvent::Error(status),
            })
        };
        Self { list, event }
    }
}

impl ListWatch<Pod> {
    /// Decodes pods without what only their nodes need (`trim.rs`).
    pub(crate) fn trimmed(mut self) -> Self {
        self.decode = Decode::trimmed();
        self
    }
}

fn object<K>(decoded: Decoded<Trimmed<K>>) -> Decoded<K> {
    match decoded {
        Decoded::Object(Trimmed(object)) => Decoded::Object(object),
        Decoded::Broken(broken) => Decoded::Broken(broken),
    }
}

/// Returns the event of one line of a watch; `None` for an incomplete line at the end of a broken stream.
fn event<K>(
    decoded: Result<WatchEvent<Decoded<K>>, serde_json::Error>,
    line: &str,
) -> Result<Option<WatchEvent<Decoded<K>>>, kube::Error> {
    match decoded {
        Ok(event) => Ok(Some(event)),
        Err(error) if error.is_eof() => Ok(None),
        // The server may send an error status instead of events.
        Err(error) => Err(match serde_json::from_str::<Status>(line) {
            Ok(status) => kube::Error::Api(status.boxed()),
            Err(_) => kube::Error::SerdeError(error),
        }),
    }
}

impl ListWatch<PartialObjectMeta<DynamicObject>> {
    /// Lists and watches only the metadata of objects, through `api`, and of that only what the garbage
    /// collector needs (`trim.rs`).
    pub fn metadata(api: Api<DynamicObject>) -> Self {
        let request = Request::new(api.resource_url());
        let client = api.into_client();
        Self { client, request, metadata_only: true, field_selector: None, decode: Decode::trimmed() }
    }
}

/// Parses a resourceVersion, which is a number in Ephor.
pub(crate) fn parse_revision(what: &'static str, text: Option<&str>) -> Result<u64, Error> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Revision { what, found: text.map(str::to_owned) })
}
