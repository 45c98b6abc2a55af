//! A worker is cut off: its pods soon run elsewhere, and no pod runs twice after the worker is back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{Cluster, eventually, eventually_within};

/// Maximum time of the acceptance, from the cut until three pods are ready on other nodes.
const MOVED_WITHIN: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_worker_that_is_cut_off_run_elsewhere() -> Result<()> {
    let cluster = Cluster::up(3, 2).await?;
    cluster.deploy_web().await?;
    let before = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "wide", "--no-headers"])?;
    let victim = ["w1", "w2"].into_iter().find(|w| before.contains(w)).context("no pod on any worker")?;
    let other = if victim == "w1" { "w2" } else { "w1" };
    let moved: Vec<String> = pod_names(&before, victim);
    let cut = Instant::now();
    cluster.link(victim, "down")?;
    eventually_within(MOVED_WITHIN, "three ready pods on the other worker", async || {
        let pods = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "wide", "--no-headers"])?;
        let ready =
            pods.lines().filter(|l| l.contains(" 1/1 ") && l.contains("Running") && l.contains(other));
        Ok((ready.count() == 3).then_some(()))
    })
    .await?;
    println!("cut to all pods running elsewhere: {:.1} s", cut.elapsed().as_secs_f64());

    cluster.link(victim, "up")?;
    let healed = Instant::now();
    cluster.nodes_ready(2).await?;
    eventually("the old pods to be gone", async || {
        let pods = cluster.kubectl(&["get", "pods", "-l", "app=web", "--no-headers"])?;
        Ok((pods.lines().count() == 3 && moved.iter().all(|m| !pods.contains(m.as_str()))).then_some(()))
    })
    .await?;
    eventually("the old containers to be gone", async || Ok((shims_of(victim)? == 0).then_some(()))).await?;
    println!("healed to nothing running twice: {:.1} s", healed.elapsed().as_secs_f64());
    cluster.passed()
}

fn pod_names(table: &str, node: &str) -> Vec<String> {
    let rows = table.lines().filter(|l| l.contains(node));
    rows.filter_map(|l| l.split_whitespace().next().map(str::to_owned)).collect()
}

/// Returns how many pods have a shim on a node, recognised by directories below the node's own.
fn shims_of(node: &str) -> Result<usize> {
    let directory = format!("/run/ephor-dev/{node}/");
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Ok(command) = std::fs::read(entry?.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        count += usize::from(command.contains("shim daemon") && command.contains(&directory));
    }
    Ok(count)
}
