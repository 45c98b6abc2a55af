//! Measures the disk space that a member takes after endless updates of the same keys.
//! Ephor compacts by itself; etcd does not unless told to (`--auto-compaction-retention`
//! is 0 by default), so it is measured twice: with its defaults, and compacted by its
//! client, as an API server does, to the last fifth of the updates (of 1,000,000:
//! as many as Ephor keeps for watches), never defragmented.

use std::time::Duration;

use anyhow::{Context, Result};

use super::group::{Group, PREFIX};
use super::load;
use super::table::{Figure, Line, Unit, thousands};
use super::{Setup, Side};

const KEYS: u64 = 1_000;
/// Number of compactions in the whole run.
const ROUNDS: u64 = 20;
/// Divisor of the number of updates that gives how many a compaction keeps.
const KEPT_PART: u64 = 5;
const LOOK: Duration = Duration::from_millis(500);
/// Number of looks without a change after which the disk space counts as settled.
const STILL_LOOKS: usize = 6;
const LOOKS_MAX: usize = 60;

/// Measures the line, on groups started for it alone.
pub async fn measure(setup: &Setup, side: Side) -> Result<Vec<Line>> {
    let plain = format!("disk of a member, {} updates of 1,000 keys", thousands(setup.updates as f64));
    let compacted = format!("{plain}, etcd compacted");
    let figures = run(setup, side, false).await?;
    let other = match side {
        Side::Ephor => figures.clone(),
        Side::Etcd => run(setup, side, true).await?,
    };
    let line = |what, figures| Line { what, figures, targets: vec![] };
    Ok(vec![line(plain, figures), line(compacted, other)])
}

async fn run(setup: &Setup, side: Side, compact: bool) -> Result<Vec<Figure>> {
    let group = Group::start(setup, side).await?;
    let figures = updated(&group, setup, compact).await;
    let figures = figures.map_err(|error| error.context(group.last_words()));
    group.end().await?;
    figures
}

async fn updated(group: &Group, setup: &Setup, compact: bool) -> Result<Vec<Figure>> {
    let mut peak = 0;
    let updating = async {
        for round in 0..ROUNDS {
            let count = setup.updates * (round + 1) / ROUNDS - setup.updates * round / ROUNDS;
            load::write(group, setup, count, |number| format!("{PREFIX}/disk/{:03}", number % KEYS)).await?;
            if compact {
                compact_to(group, setup.updates / KEPT_PART).await?;
            }
        }
        anyhow::Ok(())
    };
    let mut ticks = tokio::time::interval(LOOK);
    tokio::pin!(updating);
    loop {
        tokio::select! {
            biased;
            done = &mut updating => break done?,
            _ = ticks.tick() => peak = peak.max(most(group)?),
        }
    }
    let end = settled(group).await?;
    Ok(vec![
        Figure::new("at the end", end as f64, Unit::Bytes),
        Figure::new("peak", peak.max(end) as f64, Unit::Bytes),
    ])
}

fn most(group: &Group) -> Result<u64> {
    group.disk()?.into_iter().max().context("no member")
}

/// Compacts all but the last `kept` revisions.
async fn compact_to(group: &Group, kept: u64) -> Result<()> {
    let client = group.client(0);
    let revision = client.status().await?.header.unwrap_or_default().revision;
    let revision = revision - kept.cast_signed();
    if revision > 0 { client.compact(revision).await } else { Ok(()) }
}

async fn settled(group: &Group) -> Result<u64> {
    let (mut last, mut still) = (most(group)?, 0);
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK).await;
        let now = most(group)?;
        still = if now == last { still + 1 } else { 0 };
        last = now;
        if still == STILL_LOOKS {
            break;
        }
    }
    Ok(last)
}
