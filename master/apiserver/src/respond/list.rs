//! Encodes lists from the encodings of each object that all readers share: small lists in one piece, large
//! ones as a stream of frames. A frame is encoded (and compressed) in the pool of `heavy.rs`, and only once
//! the client has taken the previous one, so that a list of any length takes the memory of two frames. A client
//! that has not taken the whole list within the request's time gets no more of it, as in stock; otherwise a few
//! clients that read nothing would leave no room for other large lists. The entry point is `ResponseFormat::list`.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use proto_api::kinds::Kind;
use proto_api::status::Status;
use proto_api::yaml;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use super::{IncludeObject, ResponseFormat};
use crate::api::Api;
use crate::body::{self, Body, BoxError};
use crate::context::Context;
use crate::heavy::LARGE_BYTES;
use crate::negotiate::{Encoding, Representation, Shape};
use crate::registry::Target;
use crate::registry::list::ListPage;
use crate::table;

/// Approximate size of the frames in which a list is encoded, in bytes.
const FRAME_BYTES: usize = 128 * 1024;

/// Approximate size of an object in bytes where only its metadata or its row is encoded.
const PART_BYTES: usize = 1024;

/// `Retry-After` in seconds for a list refused because too many large ones are being sent.
const RETRY_SECONDS: i32 = 1;

impl ResponseFormat<'_> {
    /// Returns an answer with a page of a list, which must be taken within the time of the request.
    pub fn list(&self, api: &Arc<Api>, page: ListPage, ctx: &Context) -> Response<Body> {
        if self.representation.shape == Shape::PartialMetadata {
            return body::status_response(&super::not_acceptable());
        }
        let size = size_bytes(&page, self.representation.shape, self.include);
        let mut list = List::new(self, api, page);
        if size < LARGE_BYTES {
            let mut out = Vec::with_capacity(size + 256);
            while !list.is_done() {
                list.write(&mut out);
            }
            return body::bytes_response(StatusCode::OK, media_type(self.representation.encoding), out);
        }
        let Some(room) = api.heavy.stream() else {
            return body::status_response(&Status::too_many_requests("too many large lists", RETRY_SECONDS));
        };
        streamed(list, room, ctx)
    }
}

/// Returns the approximate size of a page once encoded, in bytes.
fn size_bytes(page: &ListPage, shape: Shape, include: IncludeObject) -> usize {
    if shape == Shape::Object || (shape == Shape::Table && include == IncludeObject::Object) {
        return page.objects.iter().map(|o| o.value.len() + 40).sum();
    }
    page.objects.len() * PART_BYTES
}

fn media_type(encoding: Encoding) -> HeaderValue {
    match encoding {
        Encoding::Json => body::JSON,
        Encoding::Yaml => HeaderValue::from_static("application/yaml"),
    }
}

/// Returns an answer whose frames are encoded while the client reads.
fn streamed(list: List, room: OwnedSemaphorePermit, ctx: &Context) -> Response<Body> {
    let (encoding, gzip) = (list.representation.encoding, ctx.gzip);
    let pack = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let sending = Sending::start(Frames { list, pack, _room: room }, ctx.timeout);
    let frames = futures::stream::unfold(Some(sending), |sending| async move {
        let sending = sending?;
        let Some(frames) = sending.take() else {
            return Some((Err(BoxError::from("the list was not taken in time")), None));
        };
        let heavy = frames.list.api.heavy.clone();
        match heavy.run(move || frames.next()).await {
            Ok(Ok((bytes, rest))) => Some((Ok(Frame::data(bytes)), rest.map(|rest| sending.put_back(rest)))),
            Ok(Err(error)) => Some((Err(BoxError::from(error)), None)),
            Err(error) => Some((Err(BoxError::from(error)), None)),
        }
    });
    let mut response = Response::new(body::boxed(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, media_type(encoding));
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// What is left of a list to send, until its time is over. Nobody asks for frames on behalf of a client that does
/// not read, so a task of its own drops them.
struct Sending {
    left: Arc<Mutex<Left>>,
    expiry: AbortHandle,
}

struct Left {
    /// `None` while a frame is encoded, and when the time is over.
    frames: Option<Frames>,
    expired: bool,
}

impl Sending {
    fn start(frames: Frames, timeout: Duration) -> Self {
        let left = Arc::new(Mutex::new(Left { frames: Some(frames), expired: false }));
        let expiring = Arc::clone(&left);
        let expiry = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            let mut left = expiring.lock().unwrap_or_else(PoisonError::into_inner);
            left.expired = true;
            left.frames = None;
        });
        Self { left, expiry: expiry.abort_handle() }
    }

    fn take(&self) -> Option<Frames> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).frames.take()
    }

    fn put_back(self, frames: Frames) -> Self {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if !left.expired {
            left.frames = Some(frames);
        }
        drop(left);
        self
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.expiry.abort();
    }
}

/// A list that is being sent to one client, frame by frame.
struct Frames {
    list: List,
    pack: Option<GzEncoder<Vec<u8>>>,
    /// Reserved slot for a large answer; released after the last frame or when the client disconnects.
    _room: OwnedSemaphorePermit,
}

impl Frames {
    /// Returns the next bytes to send and the remaining frames; `None` for these after the last frame.
    fn next(mut self) -> std::io::Result<(Bytes, Option<Self>)> {
        loop {
            let mut plain = Vec::with_capacity(FRAME_BYTES + FRAME_BYTES / 4);
            self.list.write(&mut plain);
            let done = self.list.is_done();
            let Some(mut pack) = self.pack.take() else {
                return Ok((plain.into(), (!done).then_some(self)));
            };
            pack.write_all(&plain)?;
            if done {
                return Ok((pack.finish()?.into(), None));
            }
            // Where the compressor has no output yet, further frames are written until it has.
            let packed = std::mem::take(pack.get_mut());
            self.pack = Some(pack);
            if !packed.is_empty() {
                return Ok((packed.into(), Some(self)));
            }
        }
    }
}

/// A page of a list that is being encoded.
struct List {
    api: Arc<Api>,
    kind: &'static Kind,
    namespace: String,
    representation: Representation,
    include: IncludeObject,
    now: jiff::Timestamp,
    page: ListPage,
    /// Number of objects encoded so far.
    written: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Head,
    Items,
    Done,
}

impl List {
    fn new(format: &ResponseFormat<'_>, api: &Arc<Api>, page: ListPage) -> Self {
        List {
            api: Arc::clone(api),
            kind: format.target.kind,
            namespace: format.target.namespace.to_owned(),
            representation: format.representation,
            include: format.include,
            now: format.now,
            page,
            written: 0,
            state: State::Head,
        }
    }

    fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Appends up to about [`FRAME_BYTES`] of the remaining list.
    fn write(&mut self, out: &mut Vec<u8>) {
        let format = ResponseFormat {
            target: Target::new(self.kind, &self.namespace),
            representation: self.representation,
            include: self.include,
            now: self.now,
            rows: &self.api.rows,
            monotonic: self.api.registry.clock.monotonic(),
        };
        let json = self.representation.encoding == Encoding::Json;
        if self.state == State::Head {
            self.head(out);
            self.state = State::Items;
        }
        let begun = out.len();
        while let Some(object) = self.page.objects.get(self.written) {
            if out.len() - begun >= FRAME_BYTES {
                return;
            }
            if json && self.written > 0 {
                out.push(b',');
            }
            let start = out.len();
            match self.representation.shape {
                Shape::Object => format.write_object(out, object, object.mod_revision, true),
                Shape::Table => format.write_row(out, object, object.mod_revision),
                Shape::PartialMetadata | Shape::PartialMetadataList => {
                    format.write_partial(out, object, object.mod_revision);
                }
            }
            if !json {
                yaml_item(out, start);
            }
            self.written += 1;
        }
        self.tail(out);
        self.state = State::Done;
    }

    /// Returns the members of the list except its items, in the order in which Go writes them.
    fn members(&self) -> Vec<(&'static str, Value)> {
        let page = &self.page;
        let mut meta = json!({"resourceVersion": page.revision.to_string()});
        if !page.continue_token.is_empty() {
            meta["continue"] = Value::from(page.continue_token.as_str());
            if let Some(remaining) = page.remaining {
                meta["remainingItemCount"] = Value::from(remaining);
            }
        }
        let (kind, version) = match self.representation.shape {
            Shape::Object => (self.kind.list_kind(), self.kind.api_version()),
            Shape::Table => ("Table".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let mut members =
            vec![("kind", Value::from(kind)), ("apiVersion", Value::from(version)), ("metadata", meta)];
        if self.representation.shape == Shape::Table {
            let columns = table::columns(self.kind.storage.0, self.kind.resource);
            members.push(("columnDefinitions", columns));
        }
        members
    }

    fn items(&self) -> &'static str {
        if self.representation.shape == Shape::Table { "rows" } else { "items" }
    }

    fn head(&self, out: &mut Vec<u8>) {
        let items = self.items();
        if self.representation.encoding == Encoding::Yaml {
            yaml_members(out, self.members(), |name| name < items);
            let empty = if self.page.objects.is_empty() { " []" } else { "" };
            out.extend_from_slice(format!("{items}:{empty}\n").as_bytes());
            return;
        }
        out.push(b'{');
        for (name, value) in self.members() {
            out.extend_from_slice(format!("\"{name}\":{value},").as_bytes());
        }
        out.extend_from_slice(format!("\"{items}\":[").as_bytes());
    }

    fn tail(&self, out: &mut Vec<u8>) {
        let items = self.items();
        match self.representation.encoding {
            Encoding::Json => out.extend_from_slice(b"]}"),
            Encoding::Yaml => yaml_members(out, self.members(), |name| name > items),
        }
    }
}

/// Appends the members selected by `chosen` as YAML, sorted by name.
fn yaml_members(out: &mut Vec<u8>, members: Vec<(&'static str, Value)>, chosen: impl Fn(&str) -> bool) {
    let members = members.into_iter().filter(|(name, _)| chosen(name)).map(|(k, v)| (k.to_owned(), v));
    let members: serde_json::Map<String, Value> = members.collect();
    if !members.is_empty() {
        out.extend_from_slice(yaml::to_string(&Value::Object(members)).as_bytes());
    }
}

/// Converts the JSON in `out` from `start` on to an item of a YAML list.
fn yaml_item(out: &mut Vec<u8>, start: usize) {
    let value: Value = serde_json::from_slice(&out[start..]).unwrap_or_default();
    out.truncate(start);
    let text = yaml::to_string(&value);
    for (i, line) in text.lines().enumerate() {
        let lead: &[u8] = match (i, line.is_empty()) {
            (0, _) => b"- ",
            (_, true) => b"",
            (_, false) => b"  ",
        };
        out.extend_from_slice(lead);
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
}
