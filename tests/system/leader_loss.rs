//! The leading master is killed or paused repeatedly under load: no acknowledged write is lost, none is
//! applied twice, and watches and the Service go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tests::figures::summary;
use tests::load::{Reader, Watcher, Writer, check_writes};
use tests::{Cluster, How, eventually};

const WRITE_INTERVAL: Duration = Duration::from_millis(5);

/// Returns the number of kills: `EPHOR_KILLS`, which is 20 for the acceptance, or 5.
fn kills() -> Result<u32> {
    Ok(std::env::var("EPHOR_KILLS").ok().map(|v| v.parse()).transpose()?.unwrap_or(5))
}

struct Times {
    write: Vec<Duration>,
    pod: Vec<Duration>,
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_leader_loses_nothing_and_stops_nothing() -> Result<()> {
    let cluster = Cluster::up(3, 2).await?;
    cluster.deploy_web().await?;
    // The watch starts before the first write, so that it must show every write.
    let watcher = Watcher::start(cluster.client()).await?;
    let writer = Writer::start(cluster.client(), WRITE_INTERVAL);
    let api = Reader::of_api(cluster.client());
    let service = Reader::of_service(format!("{}:30080", cluster.address("w1")?));
    let mut times = Times { write: Vec::new(), pod: Vec::new() };
    for round in 0..kills()? {
        let victim = cluster.leader().await?;
        cluster.stop(&victim, How::Kill)?;
        // `stop` returns only when the process is gone.
        let killed = Instant::now();
        let (write, pod) =
            tokio::join!(first_write(&writer, killed), first_pod(&cluster, format!("after-{round}"), killed));
        times.write.push(write?);
        times.pod.push(pod?);
        cluster.start(&victim)?;
        eventually("the victim to be back", async || {
            let status = cluster.ephor(&["status"])?;
            let line = status.lines().find(|l| l.starts_with(&victim)).context("not in the status")?;
            Ok((line.contains("voter") || line.contains("leader")).then_some(()))
        })
        .await?;
    }
    let (writes, rate) = writer.finish().await?;
    println!(
        "writes: {} sent at {rate:.0}/s, {} acknowledged, {} failed",
        writes.sent,
        writes.acknowledged.len(),
        writes.failed
    );
    println!("{}", summary("kill to first acknowledged write", &times.write));
    println!("{}", summary("kill to first newly scheduled pod running", &times.pod));
    let (api, service) = (api.finish().await?, service.finish().await?);
    println!(
        "API reads: {} answered, {} failed, longest gap {:?}",
        api.answered,
        api.failures.len(),
        api.longest_gap
    );
    println!(
        "Service reads: {} answered, {} failed, longest gap {:?}",
        service.answered,
        service.failures.len(),
        service.longest_gap
    );
    println!("watch: resumed {} times", watcher.finish(&writes).await?);
    check_writes(cluster.client(), &writes).await?;
    cluster.masters_agree().await?;
    ensure!(service.failures.is_empty(), "reads through the Service failed: {:?}", service.failures);
    cluster.passed()
}

async fn first_write(writer: &Writer, killed: Instant) -> Result<Duration> {
    let at = eventually("an acknowledged write", async || Ok(writer.first_sent_after(killed))).await?;
    Ok(at - killed)
}

async fn first_pod(cluster: &Cluster, name: String, killed: Instant) -> Result<Duration> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    eventually("a new pod to be accepted", async || {
        match cluster.create_sleeper(&name).await {
            Ok(_) => Ok(Some(())),
            // An earlier attempt whose answer was lost may have created the pod.
            Err(error) => Ok(pods.get_opt(&name).await?.map(drop).or_else(|| {
                eprintln!("creating {name}: {error:#}");
                None
            })),
        }
    })
    .await?;
    eventually("the new pod to run", async || {
        let phase = pods.get(&name).await?.status.and_then(|s| s.phase);
        Ok((phase.as_deref() == Some("Running")).then_some(()))
    })
    .await?;
    Ok(killed.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_changes_nothing_when_it_wakes_up() -> Result<()> {
    let cluster = Cluster::up(3, 2).await?;
    cluster.deploy_web().await?;
    // The watch starts before the first write, so that it must show every write.
    let watcher = Watcher::start(cluster.client()).await?;
    let writer = Writer::start(cluster.client(), WRITE_INTERVAL);
    let service = Reader::of_service(format!("{}:30080", cluster.address("w1")?));
    let victim = cluster.leader().await?;
    cluster.stop(&victim, How::Pause)?;
    let paused = Instant::now();
    let recovered = first_write(&writer, paused).await?;
    println!("pause to first acknowledged write: {} ms", recovered.as_millis());
    // The pause lasts 10 s in all, while the other masters go on.
    tokio::time::sleep(Duration::from_secs(10).saturating_sub(paused.elapsed())).await;
    let successor = leader_other_than(&cluster, &victim).await?;
    cluster.resume(&victim)?;
    cluster.masters_agree().await?;
    ensure!(cluster.leader().await? == successor, "the woken leader took over again");
    let (writes, _) = writer.finish().await?;
    watcher.finish(&writes).await?;
    check_writes(cluster.client(), &writes).await?;
    let pods = cluster.kubectl(&["get", "pods", "-l", "app=web", "--no-headers"])?;
    ensure!(pods.lines().count() == 3, "three pods, neither more nor fewer:\n{pods}");
    let service = service.finish().await?;
    ensure!(service.failures.is_empty(), "reads through the Service failed: {:?}", service.failures);
    cluster.passed()
}

async fn leader_other_than(cluster: &Cluster, paused: &str) -> Result<String> {
    eventually("another leader", async || {
        let leader = cluster.leader().await?;
        Ok((leader != paused).then_some(leader))
    })
    .await
}
