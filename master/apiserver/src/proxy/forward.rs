//! Forwards a request to a node or a pod and returns the answer. An upgraded connection (WebSocket, SPDY) is
//! copied as raw bytes in both directions, so any protocol that the two ends agree on works.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proto_api::status::Status;

use super::backend::{ProxyDestination, path_after_proxy};
use super::location::NodeRequest;
use super::rewrite::{self, RewrittenBody};
use crate::api::Api;
use crate::body::{self, Body};
use crate::context::Context;
use crate::dial::{Stream, dial_plain};
use crate::request_info::RequestInfo;

/// Maximum number of bytes read of the text of a node's error.
const ERROR_TEXT_BYTES: usize = 10_000;

/// Hop-by-hop headers (RFC 9110), which are not forwarded.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fetches logs from a node; they are streamed.
///
/// # Errors
///
/// The node's error, as a Status.
pub async fn log(api: &Arc<Api>, target: &NodeRequest, pod: &str) -> Result<Response<Body>, Status> {
    let url = format!("https://{}{}", target.node.address, target.uri);
    let unreachable = |error: String| Status::internal(format!("Get {url:?}: {error}"));
    let stream = api.nodes.dial(&api.registry, &target.node).await.map_err(unreachable)?;
    let request = head(http::Method::GET, &target.uri, &target.node.address.to_string(), HeaderMap::new())?;
    let response = send(api, stream, request).await.map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(node_error(response, pod).await);
    }
    let mut answer = Response::new(body::boxed(response.into_body()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}

/// Opens exec, attach or port-forward at a node and connects the client with it.
///
/// # Errors
///
/// 400 without an upgrade; otherwise the node's error.
pub async fn stream(
    api: &Arc<Api>,
    target: &NodeRequest,
    request: &mut Request<Body>,
) -> Result<Response<Body>, Status> {
    if !is_upgrade(request.headers()) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let host = target.node.address.to_string();
    let mut headers = request.headers().clone();
    clean(&mut headers, true);
    let outgoing = head(request.method().clone(), &target.uri, &host, headers)?;
    let unreachable = |error: String| Status::internal(format!("error dialing backend: {error}"));
    let connection = api.nodes.dial(&api.registry, &target.node).await.map_err(unreachable)?;
    let client = hyper::upgrade::on(request);
    let response = send(api, connection, outgoing).await.map_err(unreachable)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(node_error(response, "").await);
    }
    Ok(join(api, client, response))
}

/// Proxies a request to a node, a pod or a service.
///
/// # Errors
///
/// 503 where the backend cannot be reached.
pub async fn proxy(
    api: &Arc<Api>,
    ctx: &Context,
    backend: &ProxyDestination,
    path: String,
    request: &mut Request<Body>,
) -> Result<Response<Body>, Status> {
    let base =
        ctx.info.path.strip_suffix(path.as_str()).unwrap_or(&ctx.info.path).trim_end_matches('/').to_owned();
    // Redirects to the path with a final slash, without which relative links of the page would not work.
    if path == "/" && !ctx.info.path.ends_with('/') && matches!(ctx.info.verb.as_str(), "get" | "head") {
        let query = if ctx.query.is_empty() { String::new() } else { format!("?{}", ctx.query) };
        return Ok(redirect(&format!("{}/{query}", ctx.info.path)));
    }
    let upgrade = is_upgrade(request.headers());
    let mut headers = request.headers().clone();
    clean(&mut headers, upgrade);
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
    if let Ok(uri) = HeaderValue::from_str(&format!("{base}{path}")) {
        headers.insert(HeaderName::from_static("x-forwarded-uri"), uri);
    }
    let host = match backend {
        ProxyDestination::Node(node) => node.address.to_string(),
        ProxyDestination::Plain(address) => address.to_string(),
    };
    let uri = raw_path_and_query(request.uri(), &ctx.info, &path);
    let mut outgoing = head(request.method().clone(), &uri, &host, headers)?;
    *outgoing.body_mut() = std::mem::replace(request.body_mut(), body::empty());
    let unreachable =
        |error: String| Status::service_unavailable(format!("error trying to reach service: {error}"));
    let connection = match backend {
        ProxyDestination::Node(node) => api.nodes.dial(&api.registry, node).await,
        ProxyDestination::Plain(address) => dial_plain(&api.registry, *address).await,
    }
    .map_err(unreachable)?;
    let client = upgrade.then(|| hyper::upgrade::on(request));
    let response = send(api, connection, outgoing).await.map_err(unreachable)?;
    match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Ok(join(api, client, response))
        }
        _ => Ok(back(response, &base)),
    }
}

/// Returns the path behind the proxy, escaped as the client sent it where that can be determined, and the
/// query.
fn raw_path_and_query(uri: &Uri, info: &RequestInfo, decoded: &str) -> String {
    let after = path_after_proxy(uri.path(), info);
    let same = percent_encoding::percent_decode_str(after).decode_utf8_lossy() == decoded;
    let path = if same {
        after.to_owned()
    } else {
        percent_encoding::utf8_percent_encode(decoded, PATH).to_string()
    };
    uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"))
}

/// Characters that must be escaped in a path.
const PATH: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'%');

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Returns the backend's answer with its links rewritten.
fn back(response: Response<Incoming>, base: &str) -> Response<Body> {
    let (mut parts, incoming) = response.into_parts();
    clean(&mut parts.headers, false);
    let moved = parts
        .headers
        .get(header::LOCATION)
        .and_then(|l| l.to_str().ok())
        .and_then(|l| rewrite::link(l, base))
        .and_then(|l| HeaderValue::from_str(&l).ok());
    if let Some(location) = moved {
        parts.headers.insert(header::LOCATION, location);
    }
    let text = |name: HeaderName| {
        parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let is_page =
        text(header::CONTENT_TYPE).starts_with("text/html") && text(header::CONTENT_ENCODING).is_empty();
    if !is_page {
        return Response::from_parts(parts, body::boxed(incoming));
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body::boxed(RewrittenBody::new(incoming, base)))
}

fn head(method: http::Method, uri: &str, host: &str, headers: HeaderMap) -> Result<Request<Body>, Status> {
    let mut request = Request::new(body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().map_err(|e| Status::bad_request(format!("invalid path: {e}")))?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(host).map_err(Status::internal)?;
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}

/// Sends a request over a new connection; a task drives the connection until both ends are done or the server
/// stops.
async fn send(
    api: &Arc<Api>,
    stream: Box<dyn Stream>,
    request: Request<Body>,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let shutdown = api.shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a proxied connection ended");
                }
            }
        }
    });
    sender.send_request(request).await.map_err(|e| e.to_string())
}

/// Connects the client and the backend of an upgraded request; returns the backend's 101.
fn join(api: &Arc<Api>, client: OnUpgrade, mut response: Response<Incoming>) -> Response<Body> {
    let backend = hyper::upgrade::on(&mut response);
    let shutdown = api.shutdown.clone();
    tokio::spawn(async move {
        let both = async {
            let (client, backend) = futures::future::try_join(client, backend).await?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::io::copy_bidirectional(&mut client, &mut backend).await.map_err(body::BoxError::from)?;
            Ok::<(), body::BoxError>(())
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            ended = both => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "an upgraded stream ended");
                }
            }
        }
    });
    let mut answer = Response::new(body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    answer
}

/// Returns whether the client asks to upgrade the connection to another protocol.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let asks = connection.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
    asks && headers.contains_key(header::UPGRADE)
}

/// Removes credentials and hop-by-hop headers; an upgrade keeps `Connection` and `Upgrade`.
fn clean(headers: &mut HeaderMap, upgrade: bool) {
    headers.remove(header::AUTHORIZATION);
    for name in HOP_BY_HOP {
        if !(upgrade && matches!(name, header::CONNECTION | header::UPGRADE)) {
            headers.remove(name);
        }
    }
    headers.remove("keep-alive");
}

/// Converts a node's error to a Status, worded as the stock API server words a kubelet's error.
async fn node_error(response: Response<Incoming>, pod: &str) -> Status {
    let code = response.status();
    let text = match Limited::new(response.into_body(), ERROR_TEXT_BYTES).collect().await {
        Ok(bytes) => String::from_utf8_lossy(&bytes.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::NOT_FOUND => {
            let message = format!("the server could not find the requested resource ( pods {pod})");
            Status::failure(404, "NotFound", if text.is_empty() { message } else { text })
                .with_details("", "pods", pod)
        }
        code => Status::failure(code.as_u16(), "", text).with_details("", "pods", pod),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_the_path_behind_a_proxy_stay_whatever_the_names_before_it_are() {
        for path in [
            "/api/v1/namespaces/proxy-x/pods/p/proxy/a%2Fb%20c",
            "/api/v1/namespaces/proxy/services/proxy/proxy/a%2Fb%20c",
            "/api/v1/nodes/proxy-n/proxy/a%2Fb%20c",
        ] {
            let uri: Uri = format!("{path}?q=%2F").parse().expect("a uri");
            let info = RequestInfo::parse(&http::Method::GET, &uri);
            let decoded = path_after_proxy(&info.path, &info).to_owned();
            assert_eq!(decoded, "/a/b c", "{path}");
            assert_eq!(raw_path_and_query(&uri, &info, &decoded), "/a%2Fb%20c?q=%2F", "{path}");
        }
    }
}
