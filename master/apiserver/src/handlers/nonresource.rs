//! Answers paths that name no resource: health, version, metrics, discovery, OpenAPI, the index and OpenID
//! discovery.

use std::sync::Arc;

use http::header::{ACCEPT, CACHE_CONTROL, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Response, StatusCode};
use proto_api::kinds;
use proto_api::status::Status;
use serde_json::json;

use crate::api::Api;
use crate::body::{self, Body};
use crate::context::Context;
use crate::request_info::RequestInfo;
use crate::server::SERVICE_ACCOUNT_KEY;
use crate::{discovery, health, openapi};

/// Returns whether a path reports this master's state (health, metrics, version) and is served in any state.
pub fn tells_state(info: &RequestInfo) -> bool {
    let first = info.path.split('/').nth(1).unwrap_or_default();
    !info.is_resource && matches!(first, "healthz" | "livez" | "readyz" | "metrics" | "version")
}

/// Answers a request whose path names no resource.
pub async fn handle(api: &Arc<Api>, ctx: &Context, headers: &HeaderMap) -> Response<Body> {
    let path = ctx.info.path.as_str();
    if !matches!(ctx.info.verb.as_str(), "get" | "head") {
        return body::text_response(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
    }
    if let Some(response) = health::handle(api, ctx).await {
        return response;
    }
    let header = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let accept = header(ACCEPT);
    let known = match path {
        "/" => Some(body::json_response(StatusCode::OK, &json!({"paths": index()}))),
        "/version" | "/version/" => Some(body::json_response(StatusCode::OK, &version())),
        "/metrics" => {
            let end = api.tokens.key_end(&api.registry);
            api.metrics.certificates_expire(&[(SERVICE_ACCOUNT_KEY, end)]);
            Some(api.metrics.render(&api.registry))
        }
        "/.well-known/openid-configuration" => Some(openid(api)),
        "/openid/v1/jwks" => Some(jwks(api, accept)),
        _ => None,
    };
    if let Some(response) = known {
        return response;
    }
    let if_none_match = header(IF_NONE_MATCH);
    let found = discovery::serve(path, accept, if_none_match, &api.advertise_address)
        .or_else(|| openapi::serve(&format!("{path}?{}", ctx.query), accept, if_none_match));
    if let Some(response) = found {
        return response.map(body::full);
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", ..] => body::status_response(&Status::no_such_path()),
        ["apis", group, ..] => unknown(group),
        _ => not_found_page(),
    }
}

/// Returns the answer for a group, version or resource that is not served.
pub fn unknown(group: &str) -> Response<Body> {
    if group.is_empty() || kinds::groups().iter().any(|(name, _)| *name == group) {
        body::status_response(&Status::no_such_path())
    } else {
        not_found_page()
    }
}

fn not_found_page() -> Response<Body> {
    body::text_response(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Returns the answer of `/version`: the Kubernetes release whose API Ephor serves.
pub fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "35",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
        "gitVersion": "v1.35.4+ephor", "gitCommit": env!("CARGO_PKG_VERSION"), "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform_arch()),
    })
}

fn platform_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn index() -> Vec<String> {
    let fixed = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    let mut paths: Vec<String> = fixed.iter().map(|p| (*p).to_owned()).collect();
    for (group, versions) in kinds::groups() {
        if group.is_empty() {
            paths.extend(versions.iter().map(|v| format!("/api/{v}")));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
        }
    }
    paths.sort();
    paths
}

fn openid(api: &Api) -> Response<Body> {
    let document = json!({
        "issuer": api.tokens.issuer(),
        "jwks_uri": format!("https://{}/openid/v1/jwks", api.advertise_address),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": api.tokens.algorithms(&api.registry),
    });
    cached(api, body::json_response(StatusCode::OK, &document))
}

/// Says for how long clients may keep what they were told about the keys of tokens.
fn cached(api: &Api, mut response: Response<Body>) -> Response<Body> {
    let value = format!("public, max-age={}", api.tokens.max_age().as_secs());
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(CACHE_CONTROL, value);
    }
    response
}

fn jwks(api: &Api, accept: Option<&str>) -> Response<Body> {
    const TYPE: &str = "application/jwk-set+json";
    let accepted = accept.is_none_or(|a| a.contains(TYPE) || a.contains("*/*"));
    if !accepted {
        return body::status_response(&Status::not_acceptable(&[TYPE]));
    }
    let keys = api.tokens.jwks(&api.registry).to_string();
    cached(api, body::bytes_response(StatusCode::OK, HeaderValue::from_static(TYPE), keys))
}
