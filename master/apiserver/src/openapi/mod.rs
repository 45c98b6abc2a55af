//! `/openapi/v3` (an index, and one document per group and version) and `/openapi/v2` (JSON or protobuf).
//! Each document is built once per process from the schema table and the table of kinds. kubectl reads them
//! for `explain`, `diff` and `apply`, and to find out whether the server validates fields; of v2 it reads
//! only protobuf.

mod gnostic;
mod paths;
mod schemas;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, VARY};
use http::{Response, StatusCode};
use proto_api::kinds;
use proto_api::status::Status;
use serde_json::{Value, json};

use crate::discovery::{etag, hash, none_match};
use schemas::Dialect;

/// Version stated in the documents: that of the Kubernetes API served.
const VERSION: &str = "v1.35.0";

const JSON: &str = "application/json";

/// Media type of the v2 protobuf document in answers; it has no `@`, which Go's parser refuses.
const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Media type of the v2 protobuf document in requests.
const PROTOBUF_V2_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Answers an OpenAPI path; `None` for any other. `path` may include the query: a document requested with its
/// current hash is marked as cacheable forever.
pub fn serve(path: &str, accept: Option<&str>, if_none_match: Option<&str>) -> Option<Response<Bytes>> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let rest = path.strip_prefix("/openapi/")?.trim_end_matches('/');
    let media: &[&'static str] = if rest == "v2" { &[JSON, PROTOBUF_V2, PROTOBUF_V2_ASKED] } else { &[JSON] };
    let Some(media) = wanted(accept, media) else { return Some(not_acceptable(media)) };
    let (document, immutable) = match rest {
        "v2" if media == JSON => (v2(), false),
        "v2" => return Some(document_response(v2_protobuf(), PROTOBUF_V2, if_none_match, false)),
        "v3" => (index(), false),
        rest => {
            let document = v3().get(rest.strip_prefix("v3/")?)?;
            (document, query.split('&').any(|p| p == format!("hash={}", document.hash)))
        }
    };
    Some(document_response(document, media, if_none_match, immutable))
}

/// Returns the first media type in the client's Accept header that the document is served in.
fn wanted(accept: Option<&str>, served: &[&'static str]) -> Option<&'static str> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return served.first().copied() };
    accept.split(',').find_map(|clause| {
        let media = clause.split(';').next().unwrap_or_default().trim();
        match media {
            "application/*" | "*/*" => served.first().copied(),
            media => served.iter().copied().find(|s| *s == media),
        }
    })
}

fn not_acceptable(served: &[&str]) -> Response<Bytes> {
    let status = Status::not_acceptable(served);
    let mut response = Response::new(Bytes::from(status.to_value().to_string()));
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

struct Document {
    body: Bytes,
    hash: String,
    etag: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        Self::of_bytes(value.to_string())
    }

    fn of_bytes(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { hash: hash(&body), etag: etag(&body), body }
    }
}

fn document_response(
    document: &Document,
    media: &'static str,
    if_none_match: Option<&str>,
    immutable: bool,
) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    if none_match(if_none_match, &document.etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = document.body.clone();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    }
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    let cache = if immutable { "public, immutable" } else { "no-cache, private" };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

/// Returns the v3 documents by their name in the index, e.g. `apis/apps/v1`; built on first use.
fn v3() -> &'static BTreeMap<String, Document> {
    static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
        let mut documents = BTreeMap::new();
        for (group, versions) in kinds::groups() {
            for version in versions {
                let name = if group.is_empty() {
                    format!("api/{version}")
                } else {
                    format!("apis/{group}/{version}")
                };
                documents.insert(name, Document::new(&v3_document(group, version)));
            }
        }
        documents
    });
    &DOCUMENTS
}

fn v3_document(group: &str, version: &str) -> Value {
    let mut schemas = schemas::Collector::new(Dialect::V3);
    let paths = paths::of(group, version, &mut schemas);
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": paths,
        "components": {"schemas": schemas.finish(), "securitySchemes": {"BearerToken": {
            "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}}}})
}

fn index() -> &'static Document {
    static INDEX: LazyLock<Document> = LazyLock::new(|| {
        let entry = |(name, document): (&String, &Document)| {
            let url = format!("/openapi/v3/{name}?hash={}", document.hash);
            (name.clone(), json!({"serverRelativeURL": url}))
        };
        let paths: serde_json::Map<String, Value> = v3().iter().map(entry).collect();
        Document::new(&json!({"paths": paths}))
    });
    &INDEX
}

fn v2() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::new(&v2_document()));
    &DOCUMENT
}

fn v2_protobuf() -> &'static Document {
    static DOCUMENT: LazyLock<Document> =
        LazyLock::new(|| Document::of_bytes(gnostic::encode(&v2_document())));
    &DOCUMENT
}

fn v2_document() -> Value {
    let mut schemas = schemas::Collector::new(Dialect::V2);
    let mut paths = serde_json::Map::new();
    for (group, versions) in kinds::groups() {
        for version in versions {
            paths.extend(paths::of(group, version, &mut schemas));
        }
    }
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": paths,
        "definitions": schemas.finish(), "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header",
            "description": "Bearer Token authentication"}}})
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
