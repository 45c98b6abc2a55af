//! Durable writes: each client creates objects, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures::FutureExt;

use super::Setup;
use super::group::{Group, PREFIX};
use super::load::{self, Deed, Values, placements};
use super::table::{Line, Target};

/// Times etcd's rate that are asked for.
const RATE_TIMES: f64 = 1.5;
/// Times the floor that one client may take.
const FLOOR_TIMES: f64 = 1.5;

/// Measures with 1, 64 and 1,000 clients.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let leader = group.leader().await?.position;
    let values = Values::new(setup.value_bytes);
    let written = Arc::new(AtomicU64::new(0));
    let mut lines = Vec::new();
    for placement in &placements(group, leader) {
        let (values, written) = (values.clone(), written.clone());
        let deed: Deed = Arc::new(move |client, by, _| {
            // No key twice, also not the warm-up's.
            let number = written.fetch_add(1, Ordering::Relaxed);
            let key = format!("{PREFIX}/writes/{by}-{number}");
            let value = values.numbered(number);
            async move { client.put(key, value).await.map(drop) }.boxed()
        });
        let mut targets = vec![Target::Times("/s", RATE_TIMES)];
        if placement.members == [leader] {
            targets.push(Target::AtMost("p50", setup.floor.write().as_secs_f64() * FLOOR_TIMES));
        }
        lines.push(load::line(group, setup, placement, "put", targets, &deed).await?);
    }
    Ok(lines)
}
