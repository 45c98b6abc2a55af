//! Runs a number of clients for a period, and computes rate and latencies.

use std::fmt;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

/// Results of one line of the report.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Number of operations that succeeded.
    pub count: usize,
    /// Operations per second.
    pub rate: f64,
    /// Median latency of an operation.
    pub p50: Duration,
    /// 99th percentile of the latency.
    pub p99: Duration,
    /// Number of operations that failed; the other figures do not include them.
    pub failed: u64,
}

/// Pause of a client after a failure, so that it does not spin.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// An operation of a client; called with the number of calls so far.
pub type Operation = Box<dyn Fn(u64) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// Runs `clients` clients, each one operation after the other, for `span`.
/// Fails when no operation succeeded.
pub async fn drive(
    clients: usize,
    span: Duration,
    client: impl Fn(usize) -> Operation,
) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..clients {
        let operation = client(number);
        running.spawn(async move {
            let mut times = Vec::new();
            let mut failures = Vec::new();
            let mut count = 0;
            while start.elapsed() < span {
                let begin = Instant::now();
                match operation(count).await {
                    Ok(()) => times.push(begin.elapsed()),
                    Err(error) => {
                        failures.push(error);
                        tokio::time::sleep(FAILURE_PAUSE).await;
                    }
                }
                count += 1;
            }
            (times, failures)
        });
    }
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    while let Some(client) = running.join_next().await {
        let (succeeded, failed) = client?;
        times.extend(succeeded);
        failures.extend(failed);
    }
    let failed = failures.len() as u64;
    match failures.pop() {
        Some(error) if times.is_empty() => Err(error.context("every operation failed")),
        Some(error) => {
            eprintln!("{failed} operations failed, one of them: {error:#}");
            Ok(Figures { failed, ..figures(times, start.elapsed()) })
        }
        None => Ok(figures(times, start.elapsed())),
    }
}

/// Computes the figures of operations with the latencies `times`, all within `span`.
pub fn figures(mut times: Vec<Duration>, span: Duration) -> Figures {
    times.sort_unstable();
    let count = times.len();
    let rate = count as f64 / span.as_secs_f64();
    Figures { count, rate, p50: percentile(&times, 50), p99: percentile(&times, 99), failed: 0 }
}

/// Returns the percentile `share` of the `sorted` times
/// (nearest rank).
pub fn percentile(sorted: &[Duration], share: usize) -> Duration {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Prints one line for each side, then the ratios.
pub fn report(what: &str, sides: &[(&str, Figures)]) {
    for (side, figures) in sides {
        println!("{what:<34} {side:<18} {figures}");
    }
    if let [(_, first), (_, second)] = sides {
        println!(
            "{what:<34} {:<18} {:>8.2}x/s  p50 {:>7.2}x  p99 {:>7.2}x",
            "ratio",
            first.rate / second.rate,
            first.p50.as_secs_f64() / second.p50.as_secs_f64(),
            first.p99.as_secs_f64() / second.p99.as_secs_f64(),
        );
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(f, "{:>8.0}/s   p50 {:>7.2} ms p99 {:>7.2} ms", self.rate, ms(self.p50), ms(self.p99))?;
        if self.failed > 0 { write!(f, "   {} failed", self.failed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(50));
        assert_eq!(percentile(&times, 99), Duration::from_millis(99));
        assert_eq!(percentile(&times[..3], 99), Duration::from_millis(3));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_failure_is_counted_and_is_no_operation() {
        let client = |_| -> Operation {
            Box::new(|count| Box::pin(async move { if count == 0 { anyhow::bail!("no") } else { Ok(()) } }))
        };
        let figures = drive(2, Duration::from_millis(50), client).await.unwrap();
        assert_eq!(figures.failed, 2);
        let broken = |_| -> Operation { Box::new(|_| Box::pin(async { anyhow::bail!("no") })) };
        assert!(drive(1, Duration::from_millis(5), broken).await.is_err());
    }
}
