//! Limits on concurrent requests, separate for reads and writes. Long-running requests, health checks,
//! in-process clients and `system:masters` are not counted; a request above the limit gets 429 with
//! Retry-After, as in stock.

use std::sync::Arc;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::{self, Body};
use crate::context::Context;

/// The limits for reads and for writes, with the permits in use.
#[derive(Debug)]
pub struct InFlight {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

fn is_probe(path: &str) -> bool {
    matches!(path.split('/').nth(1), Some("healthz" | "livez" | "readyz"))
}

impl InFlight {
    /// Creates the limits for reads and for writes (stock: 400 and 200).
    pub fn new(reads: usize, writes: usize) -> Self {
        Self { reads: Arc::new(Semaphore::new(reads)), writes: Arc::new(Semaphore::new(writes)) }
    }

    /// Returns a permit to run a request; `None` where the request is not counted.
    ///
    /// # Errors
    ///
    /// The 429 to answer with.
    pub fn admit(
        &self,
        ctx: &Context,
        in_process: bool,
    ) -> Result<Option<OwnedSemaphorePermit>, Box<Response<Body>>> {
        // Health checks are not counted: a busy server must still report that it is alive.
        let probe = !ctx.info.is_resource && is_probe(&ctx.info.path);
        if in_process || probe || ctx.info.is_long_running() || ctx.user.in_group("system:masters") {
            return Ok(None);
        }
        let limit = if ctx.info.is_mutating() { &self.writes } else { &self.reads };
        match Arc::clone(limit).try_acquire_owned() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => {
                let text = "Too many requests, please try again later.\n";
                let mut response = body::text_response(StatusCode::TOO_MANY_REQUESTS, text);
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                Err(Box::new(response))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;

    use super::*;
    use crate::context::UserInfo;
    use crate::request_info::RequestInfo;

    /// Where the tests' requests go to.
    const PODS: &str = "/api/v1/pods";

    fn context(user: UserInfo, method: &Method, path: &str) -> Context {
        let info = RequestInfo::parse(method, &path.parse().expect("a path"));
        Context::new(user, info, String::new(), String::new(), Duration::from_secs(1))
    }

    fn of_alice(method: &Method, path: &str) -> Context {
        context(UserInfo::authenticated("alice", &[]), method, path)
    }

    #[test]
    fn requests_above_a_limit_are_told_to_come_again() {
        let limits = InFlight::new(2, 1);
        let (read, write) = (of_alice(&Method::GET, PODS), of_alice(&Method::POST, PODS));
        let running = [limits.admit(&read, false).unwrap(), limits.admit(&read, false).unwrap()];
        assert!(running.iter().all(Option::is_some), "reads are counted");
        let refused = limits.admit(&read, false).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
        let writing = limits.admit(&write, false).unwrap();
        assert!(limits.admit(&write, false).is_err(), "writes have a limit of their own");
        drop((running, writing));
        assert!(limits.admit(&read, false).is_ok() && limits.admit(&write, false).is_ok());
    }

    #[test]
    fn what_keeps_the_cluster_alive_is_never_refused() {
        let limits = InFlight::new(0, 0);
        assert!(limits.admit(&of_alice(&Method::GET, PODS), false).is_err());
        assert!(limits.admit(&of_alice(&Method::POST, PODS), true).is_ok(), "in process");
        assert!(limits.admit(&of_alice(&Method::GET, "/readyz"), false).is_ok());
        assert!(limits.admit(&of_alice(&Method::GET, "/api/v1/pods?watch=true"), false).is_ok());
        assert!(limits.admit(&context(UserInfo::admin("root"), &Method::POST, PODS), false).is_ok());
    }
}
