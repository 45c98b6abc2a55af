//! Response bodies and the functions that build answers; every handler and filter returns through them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use proto_api::status::Status;
use serde_json::Value;

/// Error of a body, type-erased as hyper requires.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request or response body: complete in memory, or streamed.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// `application/json`, the default encoding.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Returns a body of bytes that are all in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Returns an empty body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// Boxes any body of bytes.
pub fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Returns an answer with the given content type and bytes.
pub fn bytes_response(
    code: StatusCode,
    content_type: HeaderValue,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Returns a JSON answer.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => bytes_response(code, JSON, bytes),
        Err(error) => status_response(&Status::internal(error.to_string())),
    }
}

/// Returns a plain text answer, as used for health checks and unknown paths.
pub fn text_response(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut response = bytes_response(code, kind, text.into());
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Returns a Status as an answer, with `Retry-After` where the Status carries seconds.
pub fn status_response(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.http_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let bytes = serde_json::to_vec(status)
        .unwrap_or_else(|_| b"{\"kind\":\"Status\",\"apiVersion\":\"v1\"}".to_vec());
    let mut response = bytes_response(code, JSON, bytes);
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
