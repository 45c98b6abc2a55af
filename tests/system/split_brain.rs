//! The leader is cut off from both other masters but not from a client: the minority acknowledges nothing,
//! the majority goes on, and after the link is restored all three hold the same state.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tests::{Cluster, eventually};

/// Maximum time in which the minority must answer that it has no quorum.
const MINORITY_WAIT: Duration = Duration::from_secs(15);

/// Drops the packets between `one` and the `others` if `cut`, else lets them pass again; the client on the
/// bridge reaches all of them.
fn separate(cluster: &Cluster, one: &str, others: &[&str], cut: bool) -> Result<()> {
    let rule = if cut {
        let mut rules = String::from(
            "add table inet split\nadd chain inet split in { type filter hook input priority 0; }\nadd chain inet split out { type filter hook output priority 0; }\n",
        );
        for other in others {
            let address = cluster.address(other)?;
            rules += &format!(
                "add rule inet split in ip saddr {address} drop\nadd rule inet split out ip daddr {address} drop\n"
            );
        }
        rules
    } else {
        "delete table inet split\n".to_owned()
    };
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", &format!("ephor-{one}"), "nft", &rule]);
    let output = nft.output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn write(client: &Client, name: &str) -> Result<()> {
    let object: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &object).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_acknowledges_nothing() -> Result<()> {
    let cluster = Cluster::up(3, 0).await?;
    let leader = cluster.leader().await?;
    let others: Vec<&str> = ["m1", "m2", "m3"].into_iter().filter(|m| *m != leader).collect();
    let (minority, majority) =
        (cluster.client_of(&leader).await?, cluster.client_of(others.first().context("no other")?).await?);
    separate(&cluster, &leader, &others, true)?;

    eventually("the majority to go on", async || {
        write(&majority, "majority").await.map(Some).or_else(|error| {
            if format!("{error:#}").contains("already exists") { Ok(Some(())) } else { Err(error) }
        })
    })
    .await?;
    let attempts = (0..10).map(|attempt| {
        let minority = minority.clone();
        async move {
            let name = format!("minority-{attempt}");
            let answer = tokio::time::timeout(MINORITY_WAIT, write(&minority, &name)).await;
            ensure!(!matches!(answer, Ok(Ok(()))), "the minority acknowledged {name}");
            Ok(())
        }
    });
    futures::future::try_join_all(attempts).await?;
    let configmaps: Api<ConfigMap> = Api::default_namespaced(minority.clone());
    let fresh = tokio::time::timeout(MINORITY_WAIT, configmaps.get("majority")).await;
    ensure!(!matches!(fresh, Ok(Ok(_))), "the minority cannot know of the majority's write");
    let stale = configmaps.list(&ListParams::default().match_any()).await;
    ensure!(stale.is_ok(), "stale reads go on without a quorum: {stale:?}");

    separate(&cluster, &leader, &others, false)?;
    cluster.masters_agree().await?;
    let names = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
    ensure!(names.contains("configmap/majority"), "the majority's write is there:\n{names}");
    println!("{}", cluster.ephor(&["status", "--digest"])?);
    cluster.passed()
}
