//! Driving a number of clients for a while, and what that came to.

use std::fmt;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

/// What a line of the report says.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Operations a second.
    pub rate: f64,
    /// Median time of one.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
}

/// One operation of a client, by its number.
pub type Operation = Box<dyn Fn(u64) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// Runs `clients` clients, each one operation after the other, for `span`.
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
            let mut count = 0;
            while start.elapsed() < span {
                let begin = Instant::now();
                operation(count).await?;
                times.push(begin.elapsed());
                count += 1;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(client) = running.join_next().await {
        times.extend(client??);
    }
    Ok(figures(times, start.elapsed()))
}

/// Figures of operations that took `times`, within `span` altogether.
pub fn figures(mut times: Vec<Duration>, span: Duration) -> Figures {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let rate = times.len() as f64 / span.as_secs_f64();
    Figures { rate, p50: at(50), p99: at(99) }
}

/// One line for each side, then the ratios.
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
        write!(f, "{:>8.0}/s   p50 {:>7.2} ms p99 {:>7.2} ms", self.rate, ms(self.p50), ms(self.p99))
    }
}
