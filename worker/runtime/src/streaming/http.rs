//! HTTP side of the streaming server: each connection is upgraded to one session.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::{StreamTickets, Ticket, channels, portforward};

/// Maximum time for a client to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a WebSocket message, in bytes.
const MESSAGE_LIMIT: usize = 4 << 20;

const PORT_FORWARD_PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
static STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

type Body = Full<Bytes>;

/// Serves one connection until it ends, or the session that it was upgraded to.
pub(super) async fn serve(streams: Arc<StreamTickets>, stream: TcpStream, shutdown: CancellationToken) {
    let service = service_fn(|request| {
        let (streams, shutdown) = (streams.clone(), shutdown.clone());
        async move { Ok::<_, Infallible>(answer(&streams, request, shutdown)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "streaming connection");
    }
}

fn refuse(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

fn answer(
    streams: &StreamTickets,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Response<Body> {
    let token = request.uri().path().rsplit('/').next().unwrap_or_default();
    let headers = request.headers();
    if !has(headers, &UPGRADE, "websocket") && !has(headers, &UPGRADE, "spdy/3.1") {
        return refuse(StatusCode::BAD_REQUEST, "an upgrade to WebSocket or SPDY/3.1 is needed");
    }
    let Some(ticket) = streams.redeem(token) else {
        return refuse(StatusCode::NOT_FOUND, "the address was used already, or is too old");
    };
    let offered = protocols(headers);
    match (has(headers, &UPGRADE, "websocket"), ticket) {
        (true, Ticket::PortForward { namespace }) => {
            if !offered.iter().any(|p| p == TUNNEL_PROTOCOL) {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "port-forward needs the protocol SPDY/3.1+portforward.k8s.io",
                );
            }
            websocket(request, Some(TUNNEL_PROTOCOL), shutdown, move |socket| {
                portforward::tunnelled(socket, namespace)
            })
        }
        (true, ticket) => {
            let version = channels::Version::choose(&offered);
            let Some(version) = version else {
                return refuse(StatusCode::BAD_REQUEST, "no known WebSocket protocol is offered");
            };
            websocket(request, version.name(), shutdown, move |socket| channels::run(socket, ticket, version))
        }
        (false, Ticket::PortForward { namespace }) => {
            spdy(request, shutdown, move |stream| portforward::run(stream, namespace))
        }
        (false, _) => refuse(StatusCode::BAD_REQUEST, "exec and attach need WebSocket"),
    }
}

/// Returns whether a comma-separated header contains a token, ignoring case.
fn has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

/// Runs a session over an upgraded connection; the runtime's shutdown ends it.
fn session<F>(
    request: Request<Incoming>,
    shutdown: CancellationToken,
    run: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {}
                    () = run(TokioIo::new(upgraded)) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "streaming upgrade"),
        }
    });
}

fn websocket<F>(
    request: Request<Incoming>,
    protocol: Option<&'static str>,
    shutdown: CancellationToken,
    run: impl FnOnce(WebSocketStream<TokioIo<Upgraded>>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send,
{
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).map(|k| derive_accept_key(k.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "the WebSocket key is missing");
    };
    let Ok(key) = HeaderValue::from_str(&key) else {
        return refuse(StatusCode::BAD_REQUEST, "the WebSocket key is invalid");
    };
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, key);
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    session(request, shutdown, |stream| async move {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_LIMIT))
            .max_frame_size(Some(MESSAGE_LIMIT));
        run(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await).await;
    });
    response
}

fn spdy<F>(
    request: Request<Incoming>,
    shutdown: CancellationToken,
    run: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(STREAM_PROTOCOL.clone(), HeaderValue::from_static(PORT_FORWARD_PROTOCOL));
    session(request, shutdown, run);
    response
}
