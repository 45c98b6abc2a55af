//! Masters that stop and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::TxnOutcome;

use super::harness::*;
use crate::*;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_and_none_applied_twice_when_leaders_die() {
    let mut cluster = Cluster::of(3).await;
    for round in 0..4 {
        let victim = cluster.leader().await;
        let mut writers = tokio::task::JoinSet::new();
        for (position, consensus) in cluster.running().enumerate() {
            if position == victim {
                continue;
            }
            let consensus = consensus.clone();
            writers.spawn(async move {
                for number in 0..60 {
                    // A create that was applied twice would fail the second time.
                    write(&consensus, &format!("/r{round}/w{position}/{number}"), "v").await;
                }
            });
        }
        wait_for("writes are under way", async || {
            (!cluster.any().store().range(&format!("/r{round}/"), None, 10, None).unwrap().objects.is_empty())
                .then_some(())
        })
        .await;
        cluster.kill(victim).await;
        writers.join_all().await;
        for consensus in cluster.running() {
            consensus.read_barrier(LONG).await.unwrap();
            let page = consensus.store().range(&format!("/r{round}/"), None, 0, None).unwrap();
            assert_eq!(page.objects.len(), 120);
        }
        cluster.restart(victim).await;
    }
    assert_eq!(cluster.converge().await.objects, 480);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_master_installs_a_snapshot() {
    let mut cluster = Cluster::of(3).await;
    let behind = cluster.follower().await;
    cluster.kill(behind).await;
    for number in 0..20 {
        write(cluster.any(), &format!("/k{number}"), &"v".repeat(100_000)).await;
    }
    let revision = cluster.converge().await.revision;
    for consensus in cluster.running() {
        let applied = consensus.applied_index();
        consensus.raft.trigger().snapshot().await.unwrap();
        wait_for("the log is purged", async || {
            consensus.raft.trigger().purge_log(applied).await.unwrap();
            (consensus.status().purged_index >= applied).then_some(())
        })
        .await;
    }
    for number in 0..5 {
        write(cluster.any(), &format!("/later{number}"), "v").await;
    }
    cluster.restart(behind).await;
    let digest = cluster.converge().await;
    assert_eq!(digest.objects, 25);
    // The state came as a snapshot, so earlier events are not in the history.
    assert!(cluster.consensus(behind).store().watch("/", revision - 1).is_err());
    // The received state is durable: the master restarts from it.
    cluster.kill(behind).await;
    cluster.restart(behind).await;
    assert_eq!(cluster.converge().await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_few_but_large_entries_is_purged() {
    let cluster = Cluster::of(3).await;
    let value = "v".repeat(8 * 1024);
    for number in 0..600 {
        write(cluster.any(), &format!("/k{}", number), &value).await;
    }
    wait_for("every log to be purged", async || {
        cluster.running().all(|consensus| consensus.status().purged_index > 0).then_some(())
    })
    .await;
    assert_eq!(cluster.converge().await.objects, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_acknowledges_nothing_and_says_so() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for position in (0..3).filter(|position| *position != leader) {
        cluster.kill(position).await;
    }
    let alone: Arc<Consensus> = cluster.consensus(leader).clone();
    wait_for("the leader notices", async || (!alone.leadership().borrow().quorum).then_some(())).await;
    assert!(!alone.leadership().borrow().leading);
    let deadline = Duration::from_millis(300);
    let read = alone.read_barrier(deadline).await.unwrap_err();
    assert!(matches!(read, ReadError::NoQuorum { .. }), "{read}");
    let write = alone.propose(create("/a", "v"), ProposeOptions { fence: None, deadline }).await;
    assert!(matches!(write, Err(ProposeError::NotEntered { .. })), "{write:?}");
    for position in (0..3).filter(|position| *position != leader) {
        cluster.restart(position).await;
    }
    let outcome = alone.propose(create("/b", "v"), options()).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Committed { .. }));
    assert!(alone.store().get("/a").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_writes_soon_after_the_old_one_died() {
    let mut cluster = Cluster::of(3).await;
    // Restart with the default timers, one master after the other.
    cluster.timers = [DEFAULT_HEARTBEAT, DEFAULT_ELECTION_MIN, DEFAULT_ELECTION_MAX];
    for position in 0..3 {
        cluster.kill(position).await;
        cluster.restart(position).await;
        cluster.leader().await;
    }
    cluster.converge().await;
    let mut times = vec![];
    for round in 0..5 {
        let victim = cluster.leader().await;
        write(cluster.any(), &format!("/before{round}"), "v").await;
        let killed = Instant::now();
        cluster.kill(victim).await;
        write(cluster.any(), &format!("/after{round}"), "v").await;
        times.push(killed.elapsed());
        cluster.restart(victim).await;
        cluster.converge().await;
    }
    times.sort_unstable();
    println!("from the leader's end to the next acknowledged write: {times:?}");
    assert!(times[2] < Duration::from_secs(3), "{times:?}");
}
