//! Response bodies and the few ways answers are made. Every handler and filter ends here.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use proto_api::status::Status;
use serde_json::Value;

/// Errors of a body, type-erased as hyper wants them.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request or response body: whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// `application/json`, the default encoding.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body that is known whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An empty body.
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

/// An answer with the given type and bytes.
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

/// A JSON answer.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => bytes_response(code, JSON, bytes),
        Err(error) => status_response(&Status::internal(error.to_string())),
    }
}

/// Plain text, as health checks and unknown paths answer.
pub fn text_response(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut response = bytes_response(code, kind, text.into());
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A Status as an answer, with `Retry-After` where the Status carries seconds.
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
