//! Measures durable writes: each client creates objects, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures::FutureExt;

use super::group::{Group, PREFIX};
use super::load::{self, ClientOperation, Values, placements};
use super::table::{Figure, Line, Target, Unit};
use super::{Setup, floor};

/// Target: this multiple of etcd's rate.
const RATE_TIMES: f64 = 1.5;
/// Target: the latency of one client is at most this multiple of fdatasync plus loopback round trip.
const FLOOR_TIMES: f64 = 1.5;
const OF_FLOOR: &str = "the floor";

/// Measures with 1, 64 and 1,000 clients.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let leader = group.leader().await?.position;
    let values = Values::new(setup.value_bytes);
    let written = Arc::new(AtomicU64::new(0));
    let mut lines = Vec::new();
    for placement in &placements(group, leader) {
        let (values, written) = (values.clone(), written.clone());
        let deed: ClientOperation = Arc::new(move |client, by, _| {
            // Every key is new, also after the warm-up.
            let number = written.fetch_add(1, Ordering::Relaxed);
            let key = format!("{PREFIX}/writes/{by}-{number}");
            let value = values.numbered(number);
            async move { client.put(key, value).await.map(drop) }.boxed()
        });
        let mut targets = vec![Target::Rate(RATE_TIMES)];
        if placement.members != [leader] {
            lines.push(load::line(group, setup, placement, "put", targets, &deed).await?);
            continue;
        }
        // The disk's speed changes within seconds, so it is measured before and after.
        targets.push(Target::AtMost(OF_FLOOR, FLOOR_TIMES, Unit::Times));
        let before = floor::machine(setup).await?.write();
        let mut line = load::line(group, setup, placement, "put", targets, &deed).await?;
        let after = floor::machine(setup).await?.write();
        let floor = (before + after).as_secs_f64() / 2.0;
        let p50 = line.figures.iter().find(|figure| figure.name == "p50").map(|figure| figure.value);
        line.figures.push(Figure::new(OF_FLOOR, p50.unwrap_or_default() / floor, Unit::Times));
        line.figures.push(Figure::new("floor", floor, Unit::Seconds));
        lines.push(line);
    }
    Ok(lines)
}
