//! Measures restarts with many objects: from starting a killed member until it
//! answers a linearizable read, and from starting all three at once until each
//! accepts a write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;

use super::Setup;
use super::group::{Group, MEMBERS, PREFIX};
use super::memory;
use super::table::{Figure, Line, Unit, thousands};
use crate::etcd::Client;
use crate::timing::percentile;

const POLL: Duration = Duration::from_millis(5);
/// Deadline of one call to a member that is starting.
const TRY_DEADLINE: Duration = Duration::from_secs(2);
/// Deadline of one restart.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Measures a group that already holds the objects.
pub async fn measure(group: &mut Group, setup: &Setup) -> Result<Vec<Line>> {
    let mut times = Vec::new();
    for _ in 0..setup.restarts {
        let leader = group.leader().await?.position;
        times.push(measure_one(group, group.others(leader)[0], setup).await?);
        group.healed().await?;
    }
    let member = line(format!("restart of a follower, {} objects", thousands(setup.objects as f64)), times);
    let mut times = Vec::new();
    for _ in 0..setup.restarts {
        times.push(all(group).await?);
        group.healed().await?;
    }
    Ok(vec![
        member,
        line(format!("restart of all members, {} objects", thousands(setup.objects as f64)), times),
    ])
}

fn line(what: String, mut times: Vec<Duration>) -> Line {
    times.sort_unstable();
    let figures = vec![
        Figure::time("p50", percentile(&times, 50)),
        Figure::time("max", times.last().copied().unwrap_or_default()),
        Figure::new("restarts", times.len() as f64, Unit::Count),
    ];
    Line { what, figures, targets: vec![] }
}

async fn measure_one(group: &mut Group, position: usize, setup: &Setup) -> Result<Duration> {
    group.kill(position)?;
    let client = group.client(position).within(TRY_DEADLINE);
    let key = memory::key(setup.objects - 1);
    // `start_again` waits for the end of the killed process before the clock starts.
    group.start_again(position).await?;
    let start = Instant::now();
    let reading = async {
        while !matches!(client.get(key.clone()).await, Ok(Some(_))) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(TIMEOUT, reading)
        .await
        .with_context(|| format!("a member does not serve again{}", group.last_words()))?;
    Ok(start.elapsed())
}

async fn all(group: &mut Group) -> Result<Duration> {
    for position in 0..MEMBERS {
        group.kill(position)?;
    }
    let start = Instant::now();
    for position in 0..MEMBERS {
        group.start_again(position).await?;
    }
    let writing = async |client: Client| {
        let client = client.within(TRY_DEADLINE);
        while client.put(format!("{PREFIX}/restart/key"), Bytes::from_static(b"1")).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    let writing = group.clients().iter().cloned().map(writing);
    tokio::time::timeout(TIMEOUT, futures::future::join_all(writing))
        .await
        .with_context(|| format!("the members do not serve again{}", group.last_words()))?;
    Ok(start.elapsed())
}
