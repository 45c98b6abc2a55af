//! Discovery (`/api`, `/apis` and below): the groups, versions and resources served, in plain
//! (`APIResourceList`) and aggregated (`apidiscovery.k8s.io`) form, all from the table of kinds. `handlers/`
//! passes GET requests to [`serve`].

mod aggregated;
mod plain;

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Response, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha512};

/// Version of the aggregated form, as named in its media type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Aggregated {
    /// `apidiscovery.k8s.io/v2`.
    V2,
    /// `apidiscovery.k8s.io/v2beta1`.
    V2Beta1,
}

impl Aggregated {
    fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }
}

/// Answers a discovery path; `None` for any other path, group or version.
///
/// `server_address` is the `HOST:PORT` the client reached, which the plain form repeats.
pub fn serve(
    path: &str,
    accept: Option<&str>,
    if_none_match: Option<&str>,
    server_address: &str,
) -> Option<Response<Bytes>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let aggregated = wanted(accept).filter(|_| matches!(path, "/api" | "/apis"));
    if let Some(version) = aggregated {
        return Some(aggregated_response(path == "/api", version, if_none_match));
    }
    let document = match path {
        "/api" => plain::versions(server_address),
        "/apis" => plain::groups(),
        _ => {
            let mut parts = path.strip_prefix('/')?.split('/');
            match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
                ("api", version, None, None) => plain::resources("", version)?,
                ("apis", group, None, None) => plain::group(group)?,
                ("apis", group, Some(version), None) => plain::resources(group, version)?,
                _ => return None,
            }
        }
    };
    let mut response = Response::new(Bytes::from(document.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if matches!(path, "/api" | "/apis") {
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    }
    Some(response)
}

/// Returns the aggregated version that the Accept header prefers; `None` where a plain form comes first.
fn wanted(accept: Option<&str>) -> Option<Aggregated> {
    for clause in accept?.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        let (mut group, mut version, mut kind) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("g", g)) => group = g,
                Some(("v", v)) => version = v,
                Some(("as", k)) => kind = k,
                _ => {}
            }
        }
        match (group, version, kind) {
            ("", "", "") => return None,
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => return Some(Aggregated::V2),
            ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => return Some(Aggregated::V2Beta1),
            _ => {}
        }
    }
    None
}

struct Cached {
    body: Bytes,
    etag: String,
}

/// Returns an aggregated document from the cache: the four documents never change while the process runs.
fn cached(core: bool, version: Aggregated) -> &'static Cached {
    type Documents = [Cached; 4];
    static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| {
        let make = |core: bool, version: Aggregated| {
            let body = Bytes::from(aggregated::document(core, version).to_string());
            let etag = etag(&body);
            Cached { body, etag }
        };
        [
            make(false, Aggregated::V2),
            make(false, Aggregated::V2Beta1),
            make(true, Aggregated::V2),
            make(true, Aggregated::V2Beta1),
        ]
    });
    let version = usize::from(version == Aggregated::V2Beta1);
    &DOCUMENTS[if core { 2 + version } else { version }]
}

fn aggregated_response(core: bool, version: Aggregated, if_none_match: Option<&str>) -> Response<Bytes> {
    let cached = cached(core, version);
    let mut response = Response::new(Bytes::new());
    if none_match(if_none_match, &cached.etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = cached.body.clone();
        let media = match version {
            Aggregated::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Aggregated::V2Beta1 => {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            }
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    }
    if let Ok(etag) = HeaderValue::from_str(&cached.etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// Returns a strong, quoted entity tag of a body.
pub(crate) fn etag(body: &[u8]) -> String {
    format!("\"{}\"", hash(body))
}

/// Returns SHA-512 in upper-case hexadecimal, as Kubernetes writes the hashes of documents.
pub(crate) fn hash(body: &[u8]) -> String {
    Sha512::digest(body).iter().map(|b| format!("{b:02X}")).collect()
}

/// Returns whether an `If-None-Match` header names the tag.
pub(crate) fn none_match(header: Option<&str>, etag: &str) -> bool {
    header.is_some_and(|h| h.split(',').any(|t| matches!(t.trim(), "*") || t.trim() == etag))
}

/// Name of the header whose value [`serve`] takes, for callers that read it from a request.
pub const IF_NONE_MATCH_HEADER: http::HeaderName = IF_NONE_MATCH;

/// Returns the identity of a storage version: the first 8 bytes of a hash of group, version and kind.
fn storage_version_hash(group: &str, version: &str, kind: &str) -> Value {
    use base64::Engine;
    let digest = sha2::Sha256::digest(format!("{group}/{version}/{kind}"));
    Value::String(base64::engine::general_purpose::STANDARD.encode(&digest[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(path: &str, accept: Option<&str>) -> Value {
        let response = serve(path, accept, None, "127.0.0.1:6443").expect("a discovery path");
        serde_json::from_slice(response.body()).expect("JSON")
    }

    #[test]
    fn the_plain_form_lists_versions_groups_and_resources() {
        assert_eq!(body("/api", None)["versions"], serde_json::json!(["v1"]));
        assert_eq!(body("/apis", None)["groups"][0]["name"], "apps");
        let resources = body("/apis/apps/v1", None);
        let first = &resources["resources"][0];
        assert_eq!(first["name"], "daemonsets");
        assert_eq!(first["storageVersionHash"], "dd7pWHUlMKQ=");
        let core = body("/api/v1", None);
        assert!(core.get("apiVersion").is_none());
        assert!(serve("/apis/apps/v9", None, None, "").is_none());
        assert!(serve("/api/v1/pods", None, None, "").is_none());
    }

    #[test]
    fn the_aggregated_form_comes_with_an_etag_and_answers_304() {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let first = serve("/apis", Some(accept), None, "").expect("a discovery path");
        let etag = first.headers()[ETAG].to_str().expect("text").to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"'));
        assert_eq!(first.headers()[VARY], "Accept");
        let again = serve("/apis", Some(accept), Some(&etag), "").expect("a discovery path");
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let document: Value = serde_json::from_slice(first.body()).expect("JSON");
        assert_eq!(document["kind"], "APIGroupDiscoveryList");
        assert_eq!(document["items"][0]["versions"][0]["resources"][1]["resource"], "deployments");
    }

    #[test]
    fn a_plain_clause_before_the_aggregated_one_wins() {
        let accept = "application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(body("/apis", Some(accept))["kind"], "APIGroupList");
    }
}
