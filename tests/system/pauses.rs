//! The leader is paused (SIGSTOP) for longer than an election, repeatedly, with linearizable reads waiting in
//! its sockets when it resumes. Its answers must not be older than the writes that its successor acknowledged
//! before the read began; etcd before 3.6.9 answers with older values.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tests::{Cluster, How, eventually};

const REGISTER: &str = "register";
/// Number of reads that wait when the leader resumes, and of reads sent right then.
const READS: usize = 16;
/// Time for a read to reach the leader's sockets.
const SENT: Duration = Duration::from_millis(50);

/// Returns the number of pauses: `EPHOR_PAUSES`, which is 50 for the record, or 5.
fn pauses() -> Result<u64> {
    Ok(std::env::var("EPHOR_PAUSES").ok().map(|v| v.parse()).transpose()?.unwrap_or(5))
}

#[derive(Default)]
struct Reads {
    answered: usize,
    refused: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_answers_no_stale_read() -> Result<()> {
    let cluster = Cluster::up(3, 0).await?;
    let mut reads = Reads::default();
    create(cluster.client()).await?;
    for round in 1..=pauses()? {
        let victim = cluster.leader().await?;
        let old = cluster.client_of(&victim).await?;
        // Each reader has its own connection, opened before the pause.
        let readers = join_all((0..READS).map(|_| cluster.client_of(&victim))).await;
        let readers = readers.into_iter().collect::<Result<Vec<Client>>>()?;
        for reader in &readers {
            read(reader.clone()).await.context("reading before the pause")?;
        }
        cluster.stop(&victim, How::Pause)?;
        let successor = successor(&cluster, &victim).await?;
        write(&cluster, &successor, round).await?;
        let waiting: Vec<_> = readers.into_iter().map(|reader| tokio::spawn(read(reader))).collect();
        tokio::time::sleep(SENT).await;
        cluster.resume(&victim)?;
        let late = (0..READS).map(|_| tokio::spawn(read(old.clone())));
        for answer in waiting.into_iter().chain(late.collect::<Vec<_>>()) {
            match answer.await? {
                Ok(value) => {
                    ensure!(value >= round, "round {round}: a stale read of {value} at {victim}");
                    reads.answered += 1;
                }
                Err(_) => reads.refused += 1,
            }
        }
        cluster.masters_agree().await?;
    }
    println!(
        "{} pauses: {} reads answered, {} refused, none stale",
        pauses()?,
        reads.answered,
        reads.refused
    );
    ensure!(reads.answered > 0, "no read was answered, so nothing was shown");
    cluster.passed()
}

fn registers(client: Client) -> Api<ConfigMap> {
    Api::default_namespaced(client)
}

async fn create(client: Client) -> Result<()> {
    let register = json!({"metadata": {"name": REGISTER}, "data": {"v": "0"}});
    registers(client).create(&PostParams::default(), &serde_json::from_value(register)?).await?;
    Ok(())
}

async fn read(client: Client) -> Result<u64> {
    let register = registers(client).get(REGISTER).await?;
    let value =
        register.data.and_then(|data| data.get("v").cloned()).context("a register without a value")?;
    Ok(value.parse()?)
}

/// Writes through this master, retrying until the write is acknowledged.
async fn write(cluster: &Cluster, master: &str, value: u64) -> Result<()> {
    let client = cluster.client_of(master).await?;
    let change = Patch::Merge(json!({"data": {"v": value.to_string()}}));
    eventually("an acknowledged write", async || {
        let written = registers(client.clone()).patch(REGISTER, &PatchParams::default(), &change).await;
        Ok(written.ok().map(drop))
    })
    .await
}

async fn successor(cluster: &Cluster, paused: &str) -> Result<String> {
    eventually("another leader", async || {
        let leader = cluster.leader().await?;
        Ok((leader != paused).then_some(leader))
    })
    .await
}
