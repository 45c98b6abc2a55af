//! Serves exec, attach and port-forward: repeats the client's upgrade request at the runtime's streaming
//! server and copies bytes both ways. Any protocol that both ends speak works: WebSocket, or SPDY/3.1 with
//! containerd. Frames are translated for a client that speaks only `v5.channel.k8s.io` and a runtime that
//! speaks only v4.

mod translate;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest};
use tokio::net::TcpStream;
use tracing::debug;

use super::{Body, Query, text};
use crate::Error;
use crate::context::Context;
use crate::cri::snapshot::{RuntimePod, is_running};
use crate::pod;

const MAX_ERROR_BYTES: usize = 64 << 10;
const PROTOCOL: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;

/// Headers of an upgrade request that are passed on to the runtime.
const FORWARDED: [HeaderName; 7] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    HeaderName::from_static("x-stream-protocol-version"),
];

async fn runtime_pod(context: &Context, namespace: &str, name: &str) -> Result<RuntimePod, Response<Body>> {
    let pod = context.pods.find(namespace, name);
    let Some(pod) = pod else {
        return Err(text(StatusCode::NOT_FOUND, format!("pod does not exist: {name}_{namespace}")));
    };
    RuntimePod::read(&context.cri, pod::uid(&pod)).await.map_err(internal)
}

fn internal(error: Error) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn running_id(runtime: &RuntimePod, container: &str) -> Option<String> {
    runtime.container(container).filter(|c| is_running(c)).map(|c| c.id.clone())
}

fn not_running(container: &str) -> Response<Body> {
    text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))
}

/// Serves `/exec`.
pub async fn exec(
    context: &Context,
    request: Request<Incoming>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let runtime = match runtime_pod(context, namespace, name).await {
        Ok(runtime) => runtime,
        Err(response) => return response,
    };
    let Some(id) = running_id(&runtime, container) else { return not_running(container) };
    let tty = query.flag(&["tty"]);
    let exec = ExecRequest {
        container_id: id,
        cmd: query.all("command").to_vec(),
        tty,
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        // A terminal has one output stream.
        stderr: !tty && query.flag(&["error", "stderr"]),
    };
    forward(context, request, Session::Exec(exec)).await
}

/// Serves `/attach`.
pub async fn attach(
    context: &Context,
    request: Request<Incoming>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let runtime = match runtime_pod(context, namespace, name).await {
        Ok(runtime) => runtime,
        Err(response) => return response,
    };
    let Some(id) = running_id(&runtime, container) else { return not_running(container) };
    let tty = context
        .pods
        .find(namespace, name)
        .and_then(|p| pod::find_container(&p, container)?.tty)
        .unwrap_or(false);
    let attach = AttachRequest {
        container_id: id,
        stdin: query.flag(&["input", "stdin"]),
        tty,
        stdout: query.flag(&["output", "stdout"]),
        stderr: !tty && query.flag(&["error", "stderr"]),
    };
    forward(context, request, Session::Attach(attach)).await
}

/// Serves `/portForward`.
pub async fn port_forward(
    context: &Context,
    request: Request<Incoming>,
    namespace: &str,
    name: &str,
    query: &Query,
) -> Response<Body> {
    let runtime = match runtime_pod(context, namespace, name).await {
        Ok(runtime) => runtime,
        Err(response) => return response,
    };
    let Some(sandbox) = runtime.ready_sandbox().map(|s| s.id.clone()) else {
        return text(StatusCode::NOT_FOUND, format!("pod does not run: {name}_{namespace}"));
    };
    let ports = query.all("port").iter().chain(query.all("ports")).flat_map(|p| p.split(','));
    let ports: Vec<i32> = ports.filter_map(|p| p.parse().ok()).collect();
    forward(context, request, Session::PortForward(sandbox, ports)).await
}

/// The streaming session that a client requests.
enum Session {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(String, Vec<i32>),
}

impl Session {
    /// Requests a URL of the runtime's streaming server; each URL is valid for one request.
    async fn url(&self, context: &Context) -> Result<String, Error> {
        match self {
            Self::Exec(request) => context.cri.exec(request.clone()).await,
            Self::Attach(request) => context.cri.attach(request.clone()).await,
            Self::PortForward(sandbox, ports) => context.cri.port_forward(sandbox, ports.clone()).await,
        }
    }
}

/// Repeats the client's upgrade request at the runtime's streaming server and joins both connections.
async fn forward(context: &Context, mut request: Request<Incoming>, session: Session) -> Response<Body> {
    if !request.headers().contains_key(header::UPGRADE) {
        return text(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let headers = forwarded(request.headers());
    let method = request.method().clone();
    let first = match session.url(context).await {
        Ok(url) => open(&url, method, &headers).await,
        Err(error) => return internal(error),
    };
    let upstream = match first {
        Ok(upstream) => upstream,
        Err(message) => return text(StatusCode::BAD_GATEWAY, message),
    };
    if upstream.status() != StatusCode::SWITCHING_PROTOCOLS {
        if translate::is_possible(request.headers()) {
            return match session.url(context).await {
                Ok(url) => translate::forward(request, &url).await,
                Err(error) => internal(error),
            };
        }
        return refused(upstream).await;
    }
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = upstream.headers().clone();
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let ends = futures::future::try_join(client, hyper::upgrade::on(upstream)).await;
        match ends {
            Ok((client, upstream)) => {
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
                    debug!(%error, "stream ended");
                }
            }
            Err(error) => debug!(%error, "upgrade failed"),
        }
    });
    response
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut chosen = HeaderMap::new();
    for name in FORWARDED {
        for value in headers.get_all(&name) {
            chosen.append(name.clone(), value.clone());
        }
    }
    chosen
}

/// Sends the upgrade request to the runtime's streaming server.
async fn open(url: &str, method: http::Method, headers: &HeaderMap) -> Result<Response<Incoming>, String> {
    let uri: Uri = url.parse().map_err(|e| format!("streaming URL {url}: {e}"))?;
    let authority = uri.authority().ok_or_else(|| format!("streaming URL {url} has no host"))?.clone();
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), port))
        .await
        .map_err(|e| format!("streaming server {authority}: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "streaming connection ended");
        }
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request =
        Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    *request.headers_mut() = headers.clone();
    let host = HeaderValue::from_str(authority.as_str()).map_err(|e| e.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    sender.send_request(request).await.map_err(|e| format!("streaming server: {e}"))
}

async fn refused(upstream: Response<Incoming>) -> Response<Body> {
    let status = upstream.status();
    let body = Limited::new(upstream.into_body(), MAX_ERROR_BYTES).collect().await;
    let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    text(if status.is_success() { StatusCode::BAD_GATEWAY } else { status }, bytes)
}
