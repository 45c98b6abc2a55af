//! Operations on the group of masters: 1, 3, 5, 7 and 3 again under load, a dead master replaced by one
//! command or by the leader itself, all masters moved to new addresses, and refused requests.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::load::{Writer, Writes, check_writes};
use tests::{Hosts, eventually, eventually_within, octet, says};

const PREFIX: &str = "ephmem";
const SUBNET: &str = "10.99.8";
const WRITE_INTERVAL: Duration = Duration::from_millis(25);
/// Twice the length of an election with the timers of these tests (`tests/src/masters.rs`).
const ELECTION_BOUND: Duration = Duration::from_secs(6);

/// Returns the longest time in which no write was acknowledged.
fn longest_gap(writes: &Writes) -> Duration {
    let mut moments: Vec<Instant> = writes.acknowledged.values().map(|(_, answered)| *answered).collect();
    moments.sort_unstable();
    moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn refused(result: Result<String>, wanted: &[&str]) -> Result<()> {
    match result {
        Ok(said) => anyhow::bail!("it was not refused: {said}"),
        Err(error) => says(&format!("{error:#}"), wanted),
    }
}

/// Returns the line of a master in the table that `members list` prints first.
fn line_of<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.lines().find(|line| {
        let mut columns = line.split_whitespace();
        columns.next().is_some_and(|id| id.parse::<u64>().is_ok()) && columns.next() == Some(name)
    })
}

fn lists(list: &str, name: &str) -> bool {
    line_of(list, name).is_some()
}

fn votes(list: &str, name: &str) -> bool {
    line_of(list, name).is_some_and(|line| line.ends_with(" voter"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_three_five_seven_and_back_without_a_failed_write() -> Result<()> {
    Hosts::run(PREFIX, SUBNET, async |hosts| {
        hosts.found("m1", octet(1), "").await?;
        let client = hosts.client(octet(1)).await?;
        let writer = Writer::start(client.clone(), WRITE_INTERVAL);
        let join = Hosts::join_line(&hosts.ephor("members add")?)?;
        for size in [3, 5, 7] {
            for number in [size - 1, size] {
                hosts.join(number, &join)?;
            }
            hosts.voters(usize::from(size)).await?;
        }
        refused(hosts.ephor("members remove m7"), &["6 of 7 voters would be left"])?;
        refused(hosts.ephor("members remove nobody"), &["there is no master nobody"])?;
        // The leader is among the masters to be removed.
        hosts.ephor("members transfer-leader m7")?;
        hosts.ephor("members remove m6 m7")?;
        hosts.voters(5).await?;
        hosts.ephor("members remove m4 m5")?;
        hosts.voters(3).await?;
        // Removed masters are told so, and end.
        for name in ["m4", "m5", "m6", "m7"] {
            ensure!(!hosts.end_of(name).await?.success(), "{name} ended as if all were well");
            says(&hosts.log(name), &["is no member any more", "join again"])?;
        }
        let (writes, rate) = writer.finish().await?;
        let gap = longest_gap(&writes);
        println!(
            "1 -> 3 -> 5 -> 7 -> 5 -> 3: {} writes acknowledged at {rate:.0}/s, {} failed, longest gap {} ms",
            writes.acknowledged.len(),
            writes.failed,
            gap.as_millis()
        );
        check_writes(client, &writes).await?;
        ensure!(writes.failed == 0, "{} writes failed", writes.failed);
        ensure!(gap < ELECTION_BOUND, "nothing was acknowledged for {gap:?}");
        let digests = hosts.ephor("status --digest")?;
        ensure!(digests.matches(" digest ").count() == 3, "{digests}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_master_is_replaced_in_one_command_or_by_the_leader_itself() -> Result<()> {
    Hosts::run(PREFIX, SUBNET, async |hosts| {
        hosts.cluster(3, "--replace-dead-after 3s").await?;
        hosts.ephor("members transfer-leader m1")?;
        hosts.kill("m3")?;
        refused(hosts.ephor("members remove m2"), &["2 of 3 voters would be left"])?;
        refused(hosts.ephor("members remove m2 m3 m1"), &["0 of 3 voters would be left"])?;
        // Without a learner to take the place, the command prints the command for a new host.
        let join = Hosts::join_line(&hosts.ephor("members replace m3")?)?;
        ensure!(join.contains("--replace"), "{join}");
        let started = Instant::now();
        hosts.join(4, &format!("{join} --replace-dead-after 3s"))?;
        eventually("m4 in the place of m3", async || {
            let list = hosts.ephor("members list")?;
            ensure!(votes(&list, "m4") && !lists(&list, "m3"), "{list}");
            Ok(Some(()))
        })
        .await?;
        println!("from the command to m4 voting in place of m3: {} ms", started.elapsed().as_millis());
        // With a learner waiting, the next master that dies is replaced without a command.
        let join = Hosts::join_line(&hosts.ephor("members add --name m5")?)?;
        hosts.join(5, &format!("{join} --replace-dead-after 3s"))?;
        eventually("m5 to wait", async || {
            let list = hosts.ephor("members list")?;
            let waits = |line: &str| line.contains(" m5 ") && line.contains(" ok ");
            Ok(list.lines().any(waits).then_some(()))
        })
        .await?;
        refused(hosts.ephor("members promote m5"), &["there would be 4 voters"])?;
        hosts.ephor("members transfer-leader m1")?;
        hosts.kill("m2")?;
        let killed = Instant::now();
        eventually_within(Duration::from_secs(60), "m5 in the place of m2", async || {
            let list = hosts.ephor("members list")?;
            ensure!(votes(&list, "m5") && !lists(&list, "m2"), "{list}");
            Ok(Some(()))
        })
        .await?;
        println!("from the kill to m5 voting by itself: {} ms", killed.elapsed().as_millis());
        says(&hosts.ephor("status")?, &["autopilot (m1): m2 ", "was replaced by m5"])?;
        // The replaced masters come back, are told, and do not start again.
        hosts.start("m2", octet(2), "")?;
        ensure!(!hosts.end_of("m2").await?.success(), "m2 goes on");
        says(&hosts.log("m2"), &["is no member any more"])?;
        hosts.voters(3).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_masters_come_back_at_other_addresses() -> Result<()> {
    Hosts::run(PREFIX, SUBNET, async |hosts| {
        hosts.cluster(3, "").await?;
        let before = hosts.ephor("members list")?;
        for number in 1..=3 {
            hosts.kill(&format!("m{number}"))?;
        }
        let moved = |number: u8| 100 + number;
        for number in 1..=3 {
            hosts.readdress(&format!("m{number}"), moved(number))?;
        }
        let hint = format!("--peers {}:6444", hosts.address(moved(1)));
        let started = Instant::now();
        hosts.start("m1", moved(1), "")?;
        hosts.start("m2", moved(2), &hint)?;
        hosts.start("m3", moved(3), &hint)?;
        hosts.use_master("m3", moved(3))?;
        let ids = |list: &str| -> Vec<String> {
            list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
        };
        eventually("three voters at their new addresses", async || {
            let list = hosts.ephor(&format!("members list --address {}:6444", hosts.address(moved(3))))?;
            let new =
                (1..=3).all(|number| list.contains(&format!(" {}:6444 ", hosts.address(moved(number)))));
            ensure!(new && list.contains(" leader\n"), "{list}");
            ensure!(ids(&list) == ids(&before), "the same members:\n{before}{list}");
            Ok(Some(()))
        })
        .await?;
        println!("from the start to a quorum at new addresses: {} ms", started.elapsed().as_millis());
        let client = hosts.client(moved(2)).await?;
        let writer = Writer::start(client.clone(), WRITE_INTERVAL);
        let start = Instant::now();
        eventually("a write", async || Ok(writer.first_sent_after(start))).await?;
        let (writes, _) = writer.finish().await?;
        check_writes(client, &writes).await
    })
    .await
}
