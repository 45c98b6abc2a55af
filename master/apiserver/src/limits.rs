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
