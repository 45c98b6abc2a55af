//! All processes of Ephor are killed at once while containers keep running, and started again: objects,
//! revisions and containers are the same.

use anyhow::{Result, ensure};
use tests::load::get;
use tests::{Cluster, How, eventually};

const NODES: [&str; 5] = ["m1", "m2", "m3", "w1", "w2"];

/// Returns name, UID and revision of the objects that do not change by themselves, and the container ids.
fn picture(cluster: &Cluster) -> Result<(String, String)> {
    let columns = "-o=custom-columns=KIND:.kind,NS:.metadata.namespace,NAME:.metadata.name,UID:.metadata.uid,\
                   GENERATION:.metadata.generation";
    let revisions = format!("{columns},RV:.metadata.resourceVersion");
    let mut objects =
        cluster.kubectl(&["get", "configmaps,secrets,services,serviceaccounts", "-A", &revisions])?;
    // Without revisions: their status follows the readiness of pods, which the restarted agents determine
    // again.
    objects += &cluster.kubectl(&["get", "deployments,replicasets", "-A", columns])?;
    let containers = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o=custom-columns=N:.metadata.name,ID:.status.containerStatuses[0].containerID,\
         R:.status.containerStatuses[0].restartCount,S:.status.containerStatuses[0].state.running.startedAt",
    ])?;
    Ok((objects, containers))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_comes_back_as_it_was() -> Result<()> {
    let cluster = Cluster::up(3, 2).await?;
    cluster.deploy_web().await?;
    let before = eventually("a picture that stands still", async || {
        let first = picture(&cluster)?;
        Ok((first == picture(&cluster)?).then_some(first))
    })
    .await?;
    let pids = web_pids()?;
    ensure!(pids.len() == 3, "three web servers run: {pids:?}");
    for node in NODES {
        cluster.stop(node, How::Kill)?;
    }
    ensure!(web_pids()? == pids, "containers outlive the workers");
    for node in NODES {
        cluster.start(node)?;
    }
    cluster.nodes_ready(2).await?;
    cluster.masters_agree().await?;
    let after = picture(&cluster)?;
    ensure!(before == after, "before:\n{}{}\nafter:\n{}{}", before.0, before.1, after.0, after.1);
    let address = format!("{}:30080", cluster.address("w1")?);
    eventually("the Service to answer", async || get(&address).await.map(Some)).await?;
    ensure!(web_pids()? == pids, "the same processes");
    cluster.passed()
}

/// Returns the pids of all pods' web servers, with their start times.
fn web_pids() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let (Ok(command), Ok(stat)) =
            (std::fs::read(path.join("cmdline")), std::fs::read_to_string(path.join("stat")))
        else {
            continue;
        };
        let arguments: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        if arguments.iter().any(|a| a == "httpd") {
            let start =
                stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)).unwrap_or_default();
            found.push(format!("{} {start}", path.display()));
        }
    }
    found.sort();
    Ok(found)
}
