//! Translates between v5.channel.k8s.io at the client and v4 at the runtime. v5 adds one message, "this
//! stream is closed" (255, stream). v4 has no such message, so a closed stdin stays open at the runtime until
//! the connection ends.

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use super::{Body, PROTOCOL, forwarded, open, refused, text};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const CLOSE_SIGNAL: u8 = 255;

/// Returns whether the client offers v5 over WebSocket.
pub fn is_possible(headers: &HeaderMap) -> bool {
    let websocket =
        headers.get(header::UPGRADE).is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let offers = headers.get_all(PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    websocket && offers.flat_map(|list| list.split(',')).any(|offer| offer.trim() == V5)
}

/// Accepts the client's upgrade as v5 and opens a v4 connection to the runtime.
pub async fn forward(mut request: Request<Incoming>, url: &str) -> Response<Body> {
    let mut headers = forwarded(request.headers());
    headers.insert(PROTOCOL, HeaderValue::from_static(V4));
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    let upstream = match open(url, http::Method::GET, &headers).await {
        Ok(upstream) if upstream.status() == StatusCode::SWITCHING_PROTOCOLS => upstream,
        Ok(upstream) => return refused(upstream).await,
        Err(message) => return text(StatusCode::BAD_GATEWAY, message),
    };
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|k| derive_accept_key(k.as_bytes()))
    else {
        return text(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(PROTOCOL, HeaderValue::from_static(V5));
    if let Ok(key) = HeaderValue::from_str(&key) {
        answer.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match futures::future::try_join(client, hyper::upgrade::on(upstream)).await {
            Ok((client, upstream)) => {
                let client = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
                let upstream =
                    WebSocketStream::from_raw_socket(TokioIo::new(upstream), Role::Client, None).await;
                pump(client, upstream).await;
            }
            Err(error) => debug!(%error, "upgrade failed"),
        }
    });
    response
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Passes messages both ways until the runtime closes or the client is gone.
async fn pump(client: Socket, upstream: Socket) {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_runtime, mut from_runtime) = upstream.split();
    let inbound = async {
        while let Some(Ok(message)) = from_client.next().await {
            let forward = match message {
                Message::Binary(data) if data.first() == Some(&CLOSE_SIGNAL) => continue,
                Message::Binary(data) => Message::Binary(data),
                Message::Text(text) => Message::Binary(Bytes::from(text)),
                Message::Close(_) => break,
                _ => continue,
            };
            if to_runtime.send(forward).await.is_err() {
                break;
            }
        }
    };
    let outbound = async {
        while let Some(Ok(message)) = from_runtime.next().await {
            let forward = matches!(message, Message::Binary(_) | Message::Text(_) | Message::Close(_));
            if forward && to_client.send(message).await.is_err() {
                break;
            }
        }
        // An error means that the client has already closed.
        let _ = to_client.close().await;
    };
    tokio::select! {
        biased;
        () = outbound => {}
        () = inbound => {}
    }
}
