//! Measures linearizable reads of one object of 1,000, at any member.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::Setup;
use super::group::{Group, PREFIX};
use super::load::{self, ClientOperation, placements};
use super::table::{Line, Target};

const OBJECTS: u64 = 1_000;
/// Target: this multiple of etcd's rate.
const RATE_TIMES: f64 = 2.0;
/// Step of a client through the objects; has no divisor in common with their number.
const STRIDE: u64 = 37;

/// Measures with 1, 64 and 1,000 clients.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    load::write(group, setup, OBJECTS, key).await?;
    let leader = group.leader().await?.position;
    let bytes = setup.value_bytes;
    let deed: ClientOperation = Arc::new(move |client, number, count| {
        let key = key((number as u64 + count * STRIDE) % OBJECTS);
        async move {
            let value = client.get(key).await?;
            ensure!(value.is_some_and(|value| value.len() == bytes), "an object is not as it was written");
            Ok(())
        }
        .boxed()
    });
    let mut lines = Vec::new();
    for placement in &placements(group, leader) {
        let targets = vec![Target::Rate(RATE_TIMES)];
        lines.push(load::line(group, setup, placement, "linearizable get", targets, &deed).await?);
    }
    Ok(lines)
}

fn key(number: u64) -> String {
    format!("{PREFIX}/reads/{number:04}")
}
