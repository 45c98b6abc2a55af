//! The chain of filters that every request passes, in order: [`handle`] runs it, called by the listener and
//! the in-process client; `handlers::dispatch` is its last step.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, HeaderName, HeaderValue, VARY, WARNING,
};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use proto_api::status::Status;

use crate::api::{Api, REQUEST_TIMEOUT};
use crate::authn::{Authentication, Credentials};
use crate::authz::Attributes;
use crate::body::{self, Body};
use crate::context::{Context, LocalIdentity, UserInfo};
use crate::handlers::{self, nonresource};
use crate::heavy::HeavyWork;
use crate::options::Query;
use crate::request_info::RequestInfo;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Size in bytes from which an answer is compressed for clients that accept gzip, as in stock.
const GZIP_MIN_BYTES: u64 = 128 * 1024;
/// Longest total of warnings that is sent in full; above it each warning is shortened, as in stock.
const WARNINGS_MAX_BYTES: usize = 4096;
const WARNING_CUT_CHARS: usize = 256;

/// Passes a request through all filters to its handler and returns the answer.
pub async fn handle(api: Arc<Api>, request: Request<Body>) -> Response<Body> {
    let started = api.registry.clock.monotonic();
    let gzip = accepts_gzip(&request);
    let mut ctx = context(&api, &request);
    let in_process = request.extensions().get::<LocalIdentity>().is_some();
    ctx.gzip = gzip && !in_process;
    let _in_flight = api.metrics.request_started(ctx.info.is_mutating());
    let mut response = match request_timeout(&ctx.query) {
        Err(status) => body::status_response(&status),
        Ok(timeout) => {
            ctx.timeout = timeout;
            let inner = AssertUnwindSafe(filters(&api, &mut ctx, request, in_process)).catch_unwind();
            match inner.await {
                Ok(response) => response,
                Err(_) => recover(&api, &ctx),
            }
        }
    };
    decorate(&ctx, &mut response);
    let seconds = api.registry.clock.monotonic().saturating_sub(started).as_secs_f64();
    api.metrics.answered(&ctx, response.status(), seconds);
    tracing::debug!(
        audit_id = %ctx.audit_id, user = %ctx.user.name, verb = %ctx.info.verb, path = %ctx.info.path,
        code = response.status().as_u16(), seconds, "request"
    );
    if ctx.gzip { compress(&api.heavy, response).await } else { response }
}

/// Runs authentication, limits, authorization and the deadline, then dispatches to the handler.
async fn filters(
    api: &Arc<Api>,
    ctx: &mut Context,
    request: Request<Body>,
    in_process: bool,
) -> Response<Body> {
    let credentials = Credentials::of(&request, api.registry.clock.now());
    match api.authenticator.authenticate(&credentials, &api.registry).await {
        Ok(Authentication::Known(user, fence)) => {
            ctx.user = user;
            ctx.fence = fence;
        }
        Ok(Authentication::Anonymous) => ctx.user = UserInfo::anonymous(),
        Ok(Authentication::Refused) => return body::status_response(&Status::unauthorized()),
        Err(status) => return body::status_response(&status),
    }
    // Impersonation is not implemented: to serve the request as the real user could allow more than the
    // client meant.
    if request.headers().keys().any(|name| name.as_str().starts_with("impersonate-")) {
        let why = format!("User {:?} cannot impersonate resource \"users\" in API group \"\"", ctx.user.name);
        return body::status_response(&Status::forbidden("", "users", "", why));
    }
    if let Some(reason) = api.registry.consensus.quarantined()
        && !nonresource::tells_state(&ctx.info)
    {
        return body::status_response(&Status::service_unavailable(reason).with_retry_after(1));
    }
    let _permit = match api.in_flight.admit(ctx, in_process) {
        Ok(permit) => permit,
        Err(response) => return *response,
    };
    if let Err(status) = authorize(api, ctx).await {
        return body::status_response(&status);
    }
    let dispatched = handlers::dispatch(api, ctx, request);
    if ctx.info.is_long_running() {
        return dispatched.await;
    }
    match tokio::time::timeout(ctx.timeout, dispatched).await {
        Ok(response) => response,
        Err(_) => {
            body::status_response(&Status::timeout("request did not complete within the allotted timeout"))
        }
    }
}

/// Asks the authorizer; repeats a refusal that a lagging replica may have caused after a read barrier.
async fn authorize(api: &Api, ctx: &Context) -> Result<(), Status> {
    let query = Query::parse(&ctx.query);
    let asked = Attributes { field_selector: query.text("fieldSelector"), ..Attributes::of(ctx) };
    let mut decision = api.authorizer.authorize(&asked, &api.registry);
    if !decision.allowed && api.authorizer.depends_on_state(&asked) {
        api.registry.barrier().await?;
        decision = api.authorizer.authorize(&asked, &api.registry);
    }
    if decision.allowed {
        return Ok(());
    }
    // A client without credentials gets 401 (authenticate first), not 403.
    if !ctx.user.in_group("system:authenticated") {
        return Err(Status::unauthorized());
    }
    Err(asked.forbidden(&decision))
}

fn context(api: &Api, request: &Request<Body>) -> Context {
    let info = RequestInfo::parse(request.method(), request.uri());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let sent = request.headers().get(AUDIT_ID).and_then(|v| v.to_str().ok()).filter(|v| v.len() <= 64);
    let audit_id = sent.map_or_else(|| api.registry.random.uuid(), str::to_owned);
    let mut ctx = Context::new(UserInfo::anonymous(), info, query, audit_id, REQUEST_TIMEOUT);
    ctx.remote = request.extensions().get::<std::net::SocketAddr>().copied();
    ctx
}

/// Returns the `timeout` the client asks for, at most the server's own.
fn request_timeout(query: &str) -> Result<Duration, Status> {
    let query = Query::parse(query);
    let Some(text) = query.get("timeout").filter(|t| !t.is_empty()) else { return Ok(REQUEST_TIMEOUT) };
    match go_duration(text) {
        Some(Duration::ZERO) => Ok(REQUEST_TIMEOUT),
        Some(timeout) => Ok(timeout.min(REQUEST_TIMEOUT)),
        None => Err(Status::bad_request(format!(
            "invalid timeout specified in the request URL: time: invalid duration {text:?}"
        ))),
    }
}

/// Parses a duration as Go writes it (`1m30s`, `500ms`, plain `0`); `None` for any other text.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += value * scale;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

fn recover(api: &Api, ctx: &Context) -> Response<Body> {
    api.metrics.panicked(&ctx.info.verb);
    tracing::error!(audit_id = %ctx.audit_id, verb = %ctx.info.verb, path = %ctx.info.path, "a handler panicked");
    let text = format!(
        "This request caused apiserver to panic. Look in the logs for details, audit id {}",
        ctx.audit_id
    );
    body::status_response(&Status::internal(text))
}

/// Adds the headers that every answer carries, and the warnings gathered while the request was served.
fn decorate(ctx: &Context, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&ctx.audit_id) {
        headers.insert(AUDIT_ID, id);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    let warnings = ctx.take_warnings();
    let cut = warnings.iter().map(String::len).sum::<usize>() > WARNINGS_MAX_BYTES;
    let mut sent = 0;
    for warning in warnings {
        let text: String = if cut { warning.chars().take(WARNING_CUT_CHARS).collect() } else { warning };
        sent += text.len();
        if sent > WARNINGS_MAX_BYTES {
            break;
        }
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

fn accepts_gzip(request: &Request<Body>) -> bool {
    request
        .headers()
        .get(ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|e| e.trim().starts_with("gzip")))
}

/// Compresses a large answer whose body is complete; a streamed answer stays as it is.
async fn compress(heavy: &HeavyWork, response: Response<Body>) -> Response<Body> {
    let large = response.body().size_hint().exact().is_some_and(|size| size >= GZIP_MIN_BYTES);
    if !large || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return body::status_response(&Status::internal(error)),
    };
    let plain = bytes.clone();
    let packed = heavy.run(move || {
        let mut encoder =
            flate2::write::GzEncoder::new(Vec::with_capacity(plain.len() / 4), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &plain).and_then(|()| encoder.finish())
    });
    match packed.await.flatten() {
        Ok(packed) => {
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, body::full(packed))
        }
        // Writing into memory does not fail; if it did, the uncompressed answer would still be correct.
        Err(_) => Response::from_parts(parts, body::full(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(go_duration("1m0.5s"), Some(Duration::from_millis(60_500)));
        assert_eq!(go_duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "s", "10", "1x", "-1s", "."] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_client_cannot_ask_for_more_time_than_there_is() {
        assert_eq!(request_timeout("timeout=10h").expect("parses"), REQUEST_TIMEOUT);
        assert_eq!(request_timeout("timeout=5s").expect("parses"), Duration::from_secs(5));
        assert_eq!(request_timeout("timeout=soon").expect_err("400").code, 400);
    }
}
