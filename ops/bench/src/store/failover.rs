//! Measures the loss of the leader: `kill -9`, then a new write every few milliseconds
//! to the other members, until the first is acknowledged. Both sides have their
//! default timers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::Setup;
use super::group::{Group, PREFIX};
use super::load::Values;
use super::table::{Figure, Line, Target, Unit};
use crate::timing::percentile;

/// Interval between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(5);
/// Deadline of a write, which may have been forwarded to the dead leader.
const WRITE_DEADLINE: Duration = Duration::from_secs(3);
/// Deadline of one failover.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(60);
const P50_SECONDS: f64 = 0.5;
const P99_SECONDS: f64 = 1.0;

/// Kills the leader `setup.kills` times; before each kill the group is
/// complete again.
pub async fn measure(group: &mut Group, setup: &Setup) -> Result<Vec<Line>> {
    let values = Values::new(setup.value_bytes);
    let mut times = Vec::new();
    for kill in 0..setup.kills {
        let leader = group.leader().await?;
        let time =
            tokio::time::timeout(FAILOVER_TIMEOUT, measure_once(group, leader.position, kill, &values));
        let time =
            time.await.with_context(|| format!("kill {kill}: no write within {FAILOVER_TIMEOUT:?}"))??;
        println!(
            "{:<5} kill {kill:<4} of the leader of term {:<6} {time:.3?}",
            group.side.name(),
            leader.term
        );
        times.push(time);
        group.start_again(leader.position).await?;
        group.healed().await?;
    }
    times.sort_unstable();
    let figures = vec![
        Figure::time("p50", percentile(&times, 50)),
        Figure::time("p99", percentile(&times, 99)),
        Figure::time("max", times.last().copied().unwrap_or_default()),
        Figure::new("kills", times.len() as f64, Unit::Count),
    ];
    let targets = vec![
        Target::AtMost("p50", P50_SECONDS, Unit::Seconds),
        Target::AtMost("p99", P99_SECONDS, Unit::Seconds),
    ];
    Ok(vec![Line { what: "kill -9 of the leader to the first write".to_owned(), figures, targets }])
}

async fn measure_once(group: &mut Group, leader: usize, kill: usize, values: &Values) -> Result<Duration> {
    let survivors: Vec<_> =
        group.others(leader).iter().map(|other| group.client(*other).within(WRITE_DEADLINE)).collect();
    for survivor in &survivors {
        // Opens every connection before the kill.
        survivor.put(format!("{PREFIX}/failover/before"), values.numbered(0)).await?;
    }
    let mut ticks = tokio::time::interval(WRITE_INTERVAL);
    let mut writes = JoinSet::new();
    let mut sent: u64 = 0;
    let killed = Instant::now();
    group.kill(leader)?;
    loop {
        tokio::select! {
            biased;
            Some(write) = writes.join_next() => if let Ok(acknowledged) = write? {
                // Aborts the writes still in flight: their outcome is not needed.
                return Ok(Instant::duration_since(&acknowledged, killed));
            },
            _ = ticks.tick() => {
                let client = survivors[usize::try_from(sent)? % survivors.len()].clone();
                let (key, value) = (format!("{PREFIX}/failover/{kill}-{sent}"), values.numbered(sent));
                writes.spawn(async move { client.put(key, value).await.map(|_| Instant::now()) });
                sent += 1;
            }
        }
    }
}
