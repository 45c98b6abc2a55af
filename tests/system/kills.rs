//! Random masters, sometimes all at once, are killed with SIGKILL under load and started again on the same
//! files: no acknowledged write is lost, and every start succeeds.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::load::{Writer, check_writes};
use tests::{Cluster, How, eventually};

const WRITE_INTERVAL: Duration = Duration::from_millis(10);
const MASTERS: [&str; 3] = ["m1", "m2", "m3"];

/// Returns the number of kills: `EPHOR_RANDOM_KILLS`, which is 300 for the acceptance, or 6.
fn kills() -> Result<u32> {
    Ok(std::env::var("EPHOR_RANDOM_KILLS").ok().map(|v| v.parse()).transpose()?.unwrap_or(6))
}

/// Returns the seed of victims and times: `EPHOR_SEED`, to repeat a run, or a random one. It is printed.
fn seed() -> Result<u64> {
    Ok(std::env::var("EPHOR_SEED").ok().map(|v| v.parse()).transpose()?.unwrap_or_else(rand::random))
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_killed_at_random_lose_nothing_and_always_start_again() -> Result<()> {
    let (wanted, seed) = (kills()?, seed()?);
    println!("{wanted} kills from EPHOR_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::up(3, 0).await?;
    let writer = Writer::start(cluster.client(), WRITE_INTERVAL);
    let (mut killed, mut told, mut all_at_once, mut while_starting) = (0, 0, 0, 0);
    while killed < wanted {
        let victims: Vec<&str> = if random.random_bool(0.1) {
            all_at_once += 1;
            MASTERS.to_vec()
        } else {
            vec![MASTERS[random.random_range(0..MASTERS.len())]]
        };
        for victim in &victims {
            cluster.stop(victim, How::Kill)?;
            killed += 1;
        }
        for victim in &victims {
            cluster.start(victim)?;
        }
        // Sometimes the master is killed again while it opens its files.
        if random.random_bool(0.2) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            cluster.stop(victims[0], How::Kill)?;
            cluster.start(victims[0])?;
            (killed, while_starting) = (killed + 1, while_starting + 1);
        }
        all_back(&cluster).await.with_context(|| format!("after {killed} kills, the last of {victims:?}"))?;
        // The time of the next kill is random too.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        if killed >= told + 20 {
            println!("{killed} kills");
            told = killed;
        }
    }
    let (writes, rate) = writer.finish().await?;
    println!(
        "{killed} kills ({all_at_once} times all three, {while_starting} while starting): {} writes sent at \
         {rate:.0}/s, {} acknowledged, {} failed",
        writes.sent,
        writes.acknowledged.len(),
        writes.failed
    );
    check_writes(cluster.client(), &writes).await?;
    cluster.masters_agree().await?;
    println!("0 acknowledged writes lost, 0 starts failed");
    cluster.passed()
}

/// Waits until every master votes again, which means that it could open its files.
async fn all_back(cluster: &Cluster) -> Result<()> {
    eventually("every master to be back", async || {
        let status = cluster.ephor(&["status"])?;
        let back = |master: &&str| {
            let line = status.lines().find(|line| line.starts_with(*master)).unwrap_or_default();
            line.contains("voter") || line.contains("leader")
        };
        Ok(MASTERS.iter().all(back).then_some(()))
    })
    .await
}
