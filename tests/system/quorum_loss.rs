//! Two of three masters are destroyed. `ephor recover` makes a writable cluster from the remaining one, and
//! the other two stop if they come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::hosts::binary;
use tests::load::{Writer, check_writes};
use tests::{Hosts, eventually, octet, says};

const PREFIX: &str = "ephquo";
const SUBNET: &str = "10.99.9";
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

/// Runs `ephor recover` on a host; returns whether it succeeded, and its outputs.
fn recover(hosts: &Hosts, name: &str, more: &[&str]) -> Result<(bool, String)> {
    let mut command = hosts.command(name, &binary()?);
    command.args(["recover", "--from-this-node", "--data-dir", &hosts.data_dir(name)]).args(more);
    let output = command.stdin(std::process::Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout) + &text(&output.stderr)))
}

fn refused(result: (bool, String), wanted: &[&str]) -> Result<()> {
    ensure!(!result.0, "it was not refused: {}", result.1);
    says(&result.1, wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_recovered_from_one_master_of_three() -> Result<()> {
    Hosts::run(PREFIX, SUBNET, lose_and_recover).await
}

async fn lose_and_recover(hosts: &mut Hosts) -> Result<()> {
    hosts.cluster(3, "").await?;
    hosts.ephor("members transfer-leader m1")?;
    // Only the follower's replica is left; it contains the acknowledged writes once it has applied them.
    let client = hosts.client(octet(1)).await?;
    let writer = Writer::start(client.clone(), WRITE_INTERVAL);
    let begun = Instant::now();
    eventually("some writes", async || Ok(writer.first_sent_after(begun + Duration::from_secs(1)))).await?;
    let (writes, _) = writer.finish().await?;
    eventually("one digest", async || {
        Ok((hosts.ephor("status --digest")?.matches(" digest ").count() == 3).then_some(()))
    })
    .await?;
    let members = hosts.ephor("members list")?;
    let greatest: u64 = members
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .max()
        .context("no ids")?;

    refused(recover(hosts, "m1", &["--yes"])?, &["is running: stop it first"])?;
    hosts.kill("m1")?;
    refused(
        recover(hosts, "m1", &["--yes"])?,
        &["2 of the 3 voting masters answer", "start this master again"],
    )?;
    hosts.kill("m2")?;
    refused(recover(hosts, "m1", &["--yes"])?, &["1 of the 3 voting masters answer (m3)"])?;
    hosts.kill("m3")?;
    refused(recover(hosts, "m1", &[])?, &["nothing was changed; give --yes", "objects at revision"])?;

    let started = Instant::now();
    let (recovered, said) = recover(hosts, "m1", &["--yes"])?;
    ensure!(recovered, "{said}");
    println!("{said}");
    says(&said, &["m2 (id ", "m3 (id ", "Recovered: ", "of the new cluster "])?;
    hosts.start("m1", octet(1), "")?;
    hosts.voters(1).await?;
    let client = hosts.client(octet(1)).await?;
    check_writes(client.clone(), &writes).await?;
    println!("from `ephor recover` to a leader: {} ms", started.elapsed().as_millis());
    let members = hosts.ephor("members list")?;
    let id: u64 = members
        .lines()
        .find(|line| line.ends_with(" leader"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no leader")?;
    ensure!(id > greatest, "id {id} is not above {greatest}");

    // A majority of the old cluster comes back at once: it must not continue beside the new cluster.
    for number in 2..=3 {
        hosts.start(&format!("m{number}"), octet(number), "")?;
    }
    for name in ["m2", "m3"] {
        ensure!(!hosts.end_of(name).await?.success(), "{name} ended as if all were well");
        says(&hosts.log(name), &["was recovered as cluster", "join again"])?;
    }
    // Nor may it continue when started again with no other master to tell it.
    hosts.start("m2", octet(2), "")?;
    ensure!(!hosts.end_of("m2").await?.success(), "m2 goes on");

    // Other masters join with empty data directories, and the cluster is complete again.
    let join = Hosts::join_line(&hosts.ephor("members add")?)?;
    for number in 2..=3 {
        let name = format!("m{number}");
        std::fs::remove_dir_all(hosts.data_dir(&name))?;
        hosts.start(&name, octet(number), &join)?;
    }
    hosts.voters(3).await?;
    eventually("one digest", async || {
        Ok((hosts.ephor("status --digest")?.matches(" digest ").count() == 3).then_some(()))
    })
    .await?;
    check_writes(client, &writes).await
}
