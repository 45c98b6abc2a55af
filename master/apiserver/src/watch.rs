//! Watches: streams of newline-delimited `{type, object}` made from the store's events. A watch filters by
//! selectors (an object that starts to match is ADDED, one that stops is DELETED), sends bookmarks where
//! allowed, and ends at the timeout, at shutdown or when the client is too slow. `handlers/list.rs` starts
//! it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use proto_api::status::Status;
use proto_env::planted::{self, Bug};
use serde_json::{Value, json};
use storage::{Object, Revision, Watch, WatchEvent, WatchItem};
use tokio::time::Instant;

use crate::api::Api;
use crate::body::{self, Body, BoxError};
use crate::context::Context;
use crate::errors;
use crate::metrics::WatchGuard;
use crate::negotiate::{Representation, Shape};
use crate::options::ListOptions;
use crate::registry::selection::Selection;
use crate::registry::{Target, key, object};
use crate::respond::{IncludeObject, ResponseFormat};

/// Interval at which the store reports progress to a watch that allows bookmarks; `Store::ask_progress`,
/// called by a new leader for example, makes it report earlier.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of progress reports for watches without bookmarks.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of bytes gathered into a frame before it is sent.
const FRAME_BYTES: usize = 64 * 1024;
/// Minimum timeout of a watch without timeoutSeconds; up to as much again is added at random, so that clients
/// reconnect at different times.
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// Maximum timeout of a watch, whatever its client asks for; no clock overflows when it is added.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parameters of a watch.
pub struct WatchParameters {
    /// Namespace to watch; empty for all namespaces.
    pub namespace: String,
    /// Kind of the objects.
    pub kind: &'static proto_api::kinds::Kind,
    /// Label and field selectors.
    pub selection: Selection,
    /// Query options of the request.
    pub options: ListOptions,
    /// Encoding and form that the client accepts.
    pub representation: Representation,
    /// Part of the object that each Table row carries.
    pub include: IncludeObject,
}

/// Starts a watch; errors after its start are sent as ERROR events.
///
/// # Errors
///
/// 400 for an invalid version, 503 and 504 where the state to start from cannot be read.
pub async fn start(
    api: &Arc<Api>,
    ctx: &Context,
    request: WatchParameters,
) -> Result<Response<Body>, Status> {
    let options = &request.options;
    let version = options.version()?;
    let from_state = match options.send_initial_events {
        Some(initial) => initial,
        None => version.unwrap_or(0) == 0,
    };
    let registry = &api.registry;
    // Planted bug: a revision that is not reached here is not waited for.
    if !planted::is(Bug::WatchFromFuture) {
        registry.freshen(ctx, version).await?;
    }
    let prefix = key::prefix(request.kind, &request.namespace);
    let (initial, after) = if from_state {
        let page = registry
            .store()
            .range(&prefix, None, 0, None)
            .map_err(|c| errors::compacted(c.asked, c.oldest))?;
        (page.objects, page.revision)
    } else {
        (Vec::new(), version.filter(|v| *v > 0).unwrap_or_else(|| registry.store().revision()))
    };
    let after =
        if planted::is(Bug::WatchFromFuture) { after.min(registry.store().revision()) } else { after };
    let limit = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()).min(MAX_TIMEOUT),
        _ => Duration::from_secs(MIN_TIMEOUT_SECONDS + registry.random.u64() % MIN_TIMEOUT_SECONDS),
    };
    let mut queue = VecDeque::new();
    // Planted bugs: the first event is lost, or the event before it is sent again.
    let from = (after + u64::from(planted::is(Bug::WatchResumesLate)))
        .saturating_sub(u64::from(planted::is(Bug::WatchResumesEarly)));
    let watch = match registry.store().watch(&prefix, from) {
        Ok(mut watch) => {
            watch.set_progress_interval(progress_interval(options));
            Some(watch)
        }
        Err(compacted) => {
            queue.push_back(error_line(&errors::compacted(after, compacted.oldest)));
            None
        }
    };
    let stream = WatchStream {
        end_of_initial: (options.send_initial_events == Some(true) && options.allow_bookmarks)
            .then_some(after),
        initial: initial.into(),
        queue,
        watch,
        reached: after,
        bookmarked: after,
        bookmark_due: false,
        deadline: Instant::now() + limit,
        headers_sent: false,
        api: Arc::clone(api),
        request,
        _counted: api.metrics.watch_started(),
    };
    let frames = futures::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next_frame().await?;
        Some((Ok::<_, BoxError>(Frame::data(bytes)), stream))
    });
    let mut response = Response::new(body::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, body::JSON);
    Ok(response)
}

fn progress_interval(options: &ListOptions) -> Duration {
    if options.allow_bookmarks { PROGRESS_INTERVAL } else { IDLE_INTERVAL }
}

struct WatchStream {
    initial: VecDeque<Arc<Object>>,
    /// Revision of the bookmark that ends the initial events; `None` once it was sent or where none is due.
    end_of_initial: Option<Revision>,
    /// Lines to send before all others.
    queue: VecDeque<Vec<u8>>,
    /// The store's watch; `None` once it has ended.
    watch: Option<Watch>,
    reached: Revision,
    bookmarked: Revision,
    /// Whether a bookmark is to be sent if the revision has advanced since the last one.
    bookmark_due: bool,
    deadline: Instant,
    headers_sent: bool,
    api: Arc<Api>,
    request: WatchParameters,
    _counted: WatchGuard,
}

impl WatchStream {
    /// Returns the next bytes to send; `None` ends the stream.
    async fn next_frame(&mut self) -> Option<Bytes> {
        // Planted bug: the watches of the leader send nothing.
        if planted::is(Bug::WatchSilent) && self.api.registry.consensus.leadership().borrow().leading {
            std::future::pending::<()>().await;
        }
        loop {
            // Checked before every frame: a busy watch never becomes idle and must still end.
            if self.api.shutdown.is_cancelled() || Instant::now() >= self.deadline {
                return self.watch.take().and_then(|_| self.bookmark_if_moved());
            }
            let mut out = Vec::new();
            self.take_ready(&mut out);
            if !out.is_empty() {
                return Some(out.into());
            }
            self.watch.as_ref()?;
            if std::mem::take(&mut self.bookmark_due)
                && let Some(bytes) = self.bookmark_if_moved()
            {
                return Some(bytes);
            }
            if let Some(bytes) = self.wait().await {
                return Some(bytes);
            }
        }
    }

    /// Waits for an event, a progress report or the end of the watch. Returns bytes to send; `None` if the
    /// caller must check for the end again.
    async fn wait(&mut self) -> Option<Bytes> {
        let shutdown = self.api.shutdown.clone();
        let deadline = self.deadline;
        let watch = self.watch.as_mut()?;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            () = tokio::time::sleep_until(deadline) => None,
            item = watch.next() => match item {
                Ok(WatchItem::Event(event)) => {
                    let mut out = Vec::new();
                    self.write_event(&mut out, &event);
                    self.take_ready(&mut out);
                    if out.is_empty() { None } else { Some(out.into()) }
                }
                Ok(WatchItem::Progress(revision)) => {
                    self.progress(revision);
                    None
                }
                // The client resumes from its last revision, or gets 410 where that has been compacted.
                Err(_) => {
                    self.watch = None;
                    None
                }
            },
        }
    }

    /// Appends the lines that can be sent without waiting, up to the size of a frame.
    fn take_ready(&mut self, out: &mut Vec<u8>) {
        while let Some(line) = self.queue.pop_front() {
            out.extend_from_slice(&line);
        }
        while out.len() < FRAME_BYTES {
            let Some(object) = self.initial.pop_front() else { break };
            if self.matches(&object) {
                self.write_line(out, "ADDED", &object, object.mod_revision);
            }
        }
        if !self.initial.is_empty() {
            return;
        }
        if let Some(revision) = self.end_of_initial.take() {
            out.extend_from_slice(&self.bookmark(revision, true));
            self.bookmarked = revision;
        }
        while out.len() < FRAME_BYTES {
            let Some(watch) = self.watch.as_mut() else { return };
            match watch.next().now_or_never() {
                Some(Ok(WatchItem::Event(event))) => self.write_event(out, &event),
                Some(Ok(WatchItem::Progress(revision))) => self.progress(revision),
                Some(Err(_)) => self.watch = None,
                None => return,
            }
        }
    }

    fn progress(&mut self, revision: Revision) {
        self.reached = self.reached.max(revision);
        self.bookmark_due = true;
    }

    fn matches(&self, object: &Object) -> bool {
        self.request.selection.is_everything()
            || self.request.selection.matches(&object::view(object, self.format().target))
    }

    fn format(&self) -> ResponseFormat<'_> {
        ResponseFormat {
            target: Target::new(self.request.kind, &self.request.namespace),
            representation: self.request.representation,
            include: self.request.include,
            now: jiff::Timestamp::try_from(self.api.registry.clock.now())
                .unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            rows: &self.api.rows,
            monotonic: self.api.registry.clock.monotonic(),
        }
    }

    fn write_event(&mut self, out: &mut Vec<u8>, event: &WatchEvent) {
        self.reached = self.reached.max(event.revision);
        // Planted bug: a bookmark overtakes events that are still to be delivered.
        if planted::is(Bug::BookmarkAhead) {
            out.extend_from_slice(&self.bookmark(self.api.registry.store().revision(), false));
        }
        let sent = out.len();
        let before = event.previous.as_ref().filter(|o| self.matches(o)).cloned();
        let after = event.object.as_ref().filter(|o| self.matches(o)).cloned();
        match (before, after) {
            (None, None) => {}
            (None, Some(object)) => self.write_line(out, "ADDED", &object, event.revision),
            (Some(_), Some(object)) => self.write_line(out, "MODIFIED", &object, event.revision),
            // A DELETED event carries the last matching state with the revision of the deletion.
            (Some(object), None) => self.write_line(out, "DELETED", &object, event.revision),
        }
        // An event carries its revision, so no bookmark is needed for it.
        if out.len() > sent {
            self.bookmarked = event.revision;
        }
    }

    fn write_line(&mut self, out: &mut Vec<u8>, event: &str, object: &Object, revision: Revision) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(event.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        let format = self.format();
        match self.request.representation.shape {
            Shape::Object => format.write_object(out, object, revision, false),
            Shape::PartialMetadata | Shape::PartialMetadataList => {
                format.write_partial(out, object, revision)
            }
            Shape::Table => {
                format.write_table(out, object, revision, !self.headers_sent);
                self.headers_sent = true;
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn bookmark_if_moved(&mut self) -> Option<Bytes> {
        if !self.request.options.allow_bookmarks || self.reached <= self.bookmarked {
            return None;
        }
        self.bookmarked = self.reached;
        Some(self.bookmark(self.reached, false).into())
    }

    fn bookmark(&self, revision: Revision, ends_initial: bool) -> Vec<u8> {
        let kind = self.request.kind;
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if ends_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": kind.gvk.kind, "apiVersion": kind.api_version(), "metadata": meta});
        let object = match self.request.representation.shape {
            Shape::Object => object,
            Shape::PartialMetadata | Shape::PartialMetadataList => crate::respond::partial(&object),
            Shape::Table => {
                let row = json!({"cells": [], "object": crate::respond::partial(&object)});
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": Value::Null,
                    "metadata": {"resourceVersion": revision.to_string()}, "rows": [row],
                })
            }
        };
        line("BOOKMARK", &object)
    }
}

fn error_line(status: &Status) -> Vec<u8> {
    line("ERROR", &status.to_value())
}

fn line(event: &str, object: &Value) -> Vec<u8> {
    let mut out = json!({"type": event, "object": object}).to_string().into_bytes();
    out.push(b'\n');
    out
}
