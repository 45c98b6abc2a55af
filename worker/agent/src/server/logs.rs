//! Serves `/containerLogs/{namespace}/{pod}/{container}`: finds the container's log and streams it.

use std::path::PathBuf;
use std::sync::Arc;

use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1::ContainerStatus;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Query, text};
use crate::context::Context;
use crate::cri::snapshot::{RuntimePod, is_running};
use crate::logs::read::{LogOptions, stream};
use crate::pod;

const CHUNKS: usize = 64;

/// Serves the log of one container.
pub async fn serve(
    context: Arc<Context>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let options = match options(query) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = context.pods.find(namespace, name) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist\n"));
    };
    if pod::find_container(&pod, container).is_none() {
        return text(
            StatusCode::NOT_FOUND,
            format!("container \"{container}\" not found in pod \"{name}\"\n"),
        );
    }
    let runtime = match RuntimePod::read(&context.cri, pod::uid(&pod)).await {
        Ok(runtime) => runtime,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let previous = query.flag(&["previous"]);
    let full = pod::display(&pod);
    let status: Option<&ContainerStatus> = runtime.containers_named(container).nth(usize::from(previous));
    let Some(status) = status else {
        let message = if previous {
            format!("previous terminated container \"{container}\" in pod \"{full}\" not found")
        } else {
            format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: {}",
                waiting_reason(&context, &pod, container)
            )
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let (out, chunks) = mpsc::channel(CHUNKS);
    let id = status.id.clone();
    let log = PathBuf::from(&status.log_path);
    tokio::spawn(async move {
        let cri = context.cri.clone();
        let ended = || {
            let (cri, id) = (cri.clone(), id.clone());
            async move {
                match cri.container_status(&id).await {
                    Ok(Some(status)) => !is_running(&status),
                    Ok(None) => true,
                    Err(error) => error.is_not_found(),
                }
            }
        };
        stream(log, options, out, ended).await;
    });
    let frames = ReceiverStream::new(chunks).map(|chunk| Ok(Frame::data(chunk)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn waiting_reason(context: &Context, pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> String {
    let status = context.statuses.get(pod::uid(pod)).unwrap_or_default();
    let statuses = status
        .container_statuses
        .into_iter()
        .flatten()
        .chain(status.init_container_statuses.into_iter().flatten());
    statuses
        .filter(|s| s.name == container)
        .find_map(|s| s.state?.waiting?.reason)
        .unwrap_or_else(|| "ContainerCreating".to_owned())
}

fn options(query: &Query) -> Result<LogOptions, String> {
    let number = |name: &str| -> Result<Option<u64>, String> {
        match query.first(name) {
            None | Some("") => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| format!("invalid value for {name}: {value}")),
        }
    };
    let since_seconds = number("sinceSeconds")?;
    let since = match (since_seconds, query.first("sinceTime")) {
        (Some(seconds), _) => {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Timestamp::now().checked_sub(ago).ok()
        }
        (None, Some(time)) => Some(time.parse().map_err(|_| format!("invalid value for sinceTime: {time}"))?),
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag(&["follow"]),
        // As in kubelet, "all" means no limit.
        tail_lines: if query.first("tailLines") == Some("all") { None } else { number("tailLines")? },
        since,
        timestamps: query.flag(&["timestamps"]),
        limit_bytes: number("limitBytes")?,
        stream: query.first("stream").filter(|s| *s != "All" && !s.is_empty()).map(str::to_owned),
    })
}
