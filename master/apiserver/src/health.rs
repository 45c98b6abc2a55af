//! `/healthz`, `/livez` and `/readyz`: plain, `?verbose`, `?exclude=`, and one path per check, as in stock. A
//! leader's answers also name the masters that do not answer it, for the workers' load balancers
//! (`proto_api::silent_masters`).

use std::net::SocketAddr;
use std::time::Duration;

use consensus::MemberHealth;
use http::{HeaderValue, Response, StatusCode};
use proto_api::silent_masters;

use crate::api::Api;
use crate::body::{self, Body};
use crate::context::Context;
use crate::options::Query;

/// Time without an answer to its leader after which a master is reported as silent to load balancers. It
/// spans many heartbeats, which masters answer on threads that clients' requests do not use.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// Name of a check and its failure; `None` where the check passes.
type Check = (&'static str, Option<String>);

/// Answers a health path; `None` for any other.
pub async fn handle(api: &Api, ctx: &Context) -> Option<Response<Body>> {
    let path = ctx.info.path.trim_end_matches('/');
    let (endpoint, single) =
        path.strip_prefix('/')?.split_once('/').map_or((&path[1..], None), |(e, s)| (e, Some(s)));
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let checks = run(api, endpoint).await;
    if let Some(name) = single {
        let Some((_, wrong)) = checks.iter().find(|(n, _)| *n == name) else {
            return Some(body::text_response(StatusCode::NOT_FOUND, "404 page not found\n"));
        };
        return Some(match wrong {
            None => body::text_response(StatusCode::OK, "ok"),
            Some(why) => body::text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {why}\n"),
            ),
        });
    }
    let mut response = report(endpoint, checks, &Query::parse(&ctx.query));
    let silent = silent_masters(api);
    if !silent.is_empty()
        && let Ok(value) = HeaderValue::from_str(&silent_masters::format(&silent))
    {
        response.headers_mut().insert(silent_masters::HEADER, value);
    }
    Some(response)
}

/// Returns the masters that have not answered this leader for [`SILENT_AFTER`]; none where another master
/// leads.
fn silent_masters(api: &Api) -> Vec<SocketAddr> {
    let consensus = &api.registry.consensus;
    let silence = |health: MemberHealth| health.heard.or(health.silent).unwrap_or_default();
    let silent: Vec<_> = consensus.health().into_iter().filter(|h| silence(*h) >= SILENT_AFTER).collect();
    if silent.is_empty() {
        return Vec::new();
    }
    let members = consensus.members();
    let is_silent = |id| silent.iter().any(|health| health.id == id);
    members.iter().filter(|m| is_silent(m.id)).filter_map(|m| m.api_address.parse().ok()).collect()
}

async fn run(api: &Api, endpoint: &str) -> Vec<Check> {
    let mut checks: Vec<Check> = vec![("ping", None), ("log", None)];
    // Liveness must not depend on a quorum: restarting this master would not restore a lost quorum.
    let lost = endpoint != "livez" && !api.registry.has_quorum();
    let quorum = lost.then(|| "no quorum".to_owned());
    checks.push(("etcd", quorum));
    if endpoint != "livez" {
        // Not a liveness check: a restart would not repair the replica, which repairs itself.
        checks.push(("replica", api.registry.consensus.quarantined()));
    }
    if endpoint == "readyz" {
        // A joining or lagging replica would serve old state. Balancers probe several times a second, so this
        // mostly uses the time of the last read barrier and asks no other master. Without a quorum no leader
        // can be asked.
        let lags = !lost && !api.registry.has_caught_up().await;
        let lag = lags.then(|| "this master's replica lags behind the leader's".to_owned());
        checks.push(("caught-up", lag));
        let stopping = api.shutdown.is_cancelled().then(|| "process is shutting down".to_owned());
        checks.push(("informer-sync", None));
        checks.push(("shutdown", stopping));
    }
    checks
}

fn report(endpoint: &str, checks: Vec<Check>, query: &Query) -> Response<Body> {
    let excluded = query.all("exclude");
    let mut text = String::new();
    let mut failed = false;
    for (name, wrong) in &checks {
        let line = match wrong {
            _ if excluded.iter().any(|e| e == name) => format!("[+]{name} excluded: ok\n"),
            None => format!("[+]{name} ok\n"),
            Some(_) => {
                failed = true;
                // Stock withholds every reason; the replica's state is no secret, so its reasons are shown.
                let told = matches!(*name, "replica" | "caught-up");
                let reason = if told { wrong.as_deref() } else { None };
                format!("[-]{name} failed: {}\n", reason.unwrap_or("reason withheld"))
            }
        };
        text.push_str(&line);
    }
    for name in excluded.iter().filter(|e| !checks.iter().any(|(n, _)| n == *e)) {
        text.push_str(&format!("warn: some health checks cannot be excluded: no matches for {name:?}\n"));
    }
    if failed {
        return body::text_response(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{text}{endpoint} check failed\n"),
        );
    }
    if query.get("verbose").is_some() {
        return body::text_response(StatusCode::OK, format!("{text}{endpoint} check passed\n"));
    }
    body::text_response(StatusCode::OK, "ok")
}
