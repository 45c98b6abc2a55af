//! HTTP probes and HTTP lifecycle hooks: GET requests. A probe answered with a status from 200 to 399 is
//! healthy. TLS certificates are not checked, as in kubelet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use proto_env::ServerVerifier;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::worker::ProbeOutcome;

const MAX_BODY_BYTES: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// `http` or `https`
    pub scheme: String,
    /// Name or address to connect to.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers besides User-Agent, Accept and Host.
    pub headers: HeaderMap,
}

impl HttpRequest {
    /// Builds the request of an action; the host is the pod's address `ip` if the action names none.
    pub fn from_action(action: &HTTPGetAction, ip: &str, port: u16) -> Self {
        let mut headers = HeaderMap::new();
        for header in action.http_headers.iter().flatten() {
            if let (Ok(name), Ok(value)) =
                (header.name.parse::<HeaderName>(), HeaderValue::from_str(&header.value))
            {
                headers.append(name, value);
            }
        }
        let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
        Self {
            scheme: action.scheme.as_deref().unwrap_or("HTTP").to_lowercase(),
            host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip).to_owned(),
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers,
        }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Probes once, within `timeout`, following redirects on the same host.
pub async fn attempt(action: &HTTPGetAction, ip: &str, port: u16, timeout: Duration) -> ProbeOutcome {
    let request = HttpRequest::from_action(action, ip, port);
    let url = format!("{}://{}{}", request.scheme, request.authority(), request.path);
    match tokio::time::timeout(timeout, follow(request)).await {
        Ok(Ok((status, _))) if status.is_success() => ProbeOutcome::Healthy,
        Ok(Ok((status, location))) if status.is_redirection() => {
            ProbeOutcome::Warning(format!("Probe terminated redirects, Response body: {location}"))
        }
        Ok(Ok((status, _))) => {
            ProbeOutcome::Failed(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
        }
        Ok(Err(error)) => ProbeOutcome::Failed(format!("Get \"{url}\": {error}")),
        Err(_) => ProbeOutcome::Failed(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// Sends requests until an answer is not a redirect to the same host; returns its status and Location header.
async fn follow(mut request: HttpRequest) -> Result<(StatusCode, String), String> {
    for _ in 0..=MAX_REDIRECTS {
        let (status, location) = get(&request).await?;
        if !status.is_redirection() || location.is_empty() {
            return Ok((status, location));
        }
        if location.starts_with('/') {
            request.path = location;
            continue;
        }
        let Ok(target) = location.parse::<http::Uri>() else { return Ok((status, location)) };
        if target.host() != Some(request.host.as_str()) {
            return Ok((status, location));
        }
        request.scheme = target.scheme_str().unwrap_or("http").to_owned();
        request.port = target.port_u16().unwrap_or(if request.scheme == "https" { 443 } else { 80 });
        request.path = target.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

/// Sends one GET; returns the status and the Location header.
pub async fn get(request: &HttpRequest) -> Result<(StatusCode, String), String> {
    let stream = TcpStream::connect((request.host.as_str(), request.port))
        .await
        .map_err(|e| format!("dial tcp {}: {e}", request.authority()))?;
    if request.scheme != "https" {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(request.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(unchecked_tls()?));
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(stream, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &HttpRequest,
) -> Result<(StatusCode, String), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let mut builder = Request::get(&request.path);
    if let Some(headers) = builder.headers_mut() {
        *headers = request.headers.clone();
        headers.entry("user-agent").or_insert(HeaderValue::from_static("kube-probe/1.35"));
        headers.entry("accept").or_insert(HeaderValue::from_static("*/*"));
        headers.insert("connection", HeaderValue::from_static("close"));
        if let Ok(host) = HeaderValue::from_str(&request.authority()) {
            headers.entry("host").or_insert(host);
        }
    }
    let message = builder.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = sender.send_request(message).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    let location =
        answer.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or_default().to_owned();
    // A body beyond the limit is cut off: only the status counts.
    let _ = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await.is_ok();
    driver.abort();
    Ok((status, location))
}

/// Returns a configuration that accepts any certificate: a probe checks that the server answers, not its
/// identity.
fn unchecked_tls() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(ServerVerifier::new(&provider, |_, _, _, _| Ok(())));
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}
