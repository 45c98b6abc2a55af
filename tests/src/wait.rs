//! Waits for conditions instead of sleeping for fixed times.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Maximum wait, long enough for the slowest machine; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `ask` until it returns an answer; an error counts as no answer yet.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    eventually_within(PATIENCE, what, ask).await
}

/// Like [`eventually`], with a time limit that is part of what the test asserts.
pub async fn eventually_within<T>(
    bound: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + bound;
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= end {
            bail!("{what}: not within {bound:?} (last: {last})");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
