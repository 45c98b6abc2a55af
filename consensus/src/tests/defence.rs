//! A replica that differs is detected, does not serve and is rebuilt; a disk that is nearly full is noticed
//! before it is full, and one that does not answer costs the leadership.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use proto_env::{CancellationToken, Clock, Env, SystemClock, TlsNetwork};
use storage::{Mutation, Txn};

use super::harness::*;
use crate::testing::lone_master;
use crate::*;

async fn spoil(cluster: &Cluster, position: usize) {
    let mut quarantine = cluster.consensus(position).defence.watch_quarantine();
    let consensus = cluster.consensus(position).clone();
    wait_for("the object", async || consensus.store().get("/planted").is_some().then_some(())).await;
    assert!(consensus.store().diverge("/planted", "original", "tampered").unwrap().is_some());
    assert!(tokio::time::timeout(LONG, quarantine.wait_for(Option::is_some)).await.is_ok(), "nobody noticed");
    // The diverged replica's state is not served to any reader.
    let read = consensus.read_barrier(LONG).await;
    assert!(read.is_err() || consensus.quarantined().is_none(), "{read:?}");
    wait_for("the replica to be right again", async || consensus.quarantined().is_none().then_some(())).await;
    assert_eq!(&consensus.store().get("/planted").unwrap().value[..], b"original");
    wait_for("the alarm to end", async || consensus.alarms().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_takes_the_leaders_state_while_writes_go_on() {
    let cluster = Cluster::of(3).await;
    write(cluster.any(), "/planted", "original").await;
    let follower = cluster.follower().await;
    let leader = cluster.consensus(cluster.leader().await).clone();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.is_cancelled() {
            write(&leader, &format!("/w{number}"), "v").await;
            number += 1;
        }
        number
    });
    spoil(&cluster, follower).await;
    stop.cancel();
    let written = writer.await.unwrap();
    assert_eq!(cluster.converge().await.objects, written + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_steps_down_and_survives_a_restart_afterwards() {
    let mut cluster = Cluster::of(3).await;
    write(cluster.any(), "/planted", "original").await;
    let leader = cluster.leader().await;
    let term = cluster.consensus(leader).leadership().borrow().term;
    spoil(&cluster, leader).await;
    let heir = cluster.leader().await;
    assert!(cluster.consensus(heir).leadership().borrow().term > term);
    write(cluster.consensus(leader), "/after", "v").await;
    let digest = cluster.converge().await;
    cluster.kill(leader).await;
    cluster.restart(leader).await;
    assert_eq!(cluster.converge().await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_majority_agrees_nobody_is_convicted() {
    let mut cluster = Cluster::of(3).await;
    write(cluster.any(), "/planted", "original").await;
    cluster.converge().await;
    let follower = cluster.follower().await;
    let leader = cluster.leader().await;
    let third = (0..3).find(|position| *position != follower && *position != leader).unwrap();
    cluster.kill(third).await;
    cluster.consensus(follower).store().diverge("/planted", "original", "tampered").unwrap();
    for position in [leader, follower] {
        let differs = |alarm: &Alarm| alarm.kind == AlarmKind::ReplicaDiffers.name();
        wait_for("the alarm", async || {
            cluster.consensus(position).alarms().iter().any(differs).then_some(())
        })
        .await;
        assert_eq!(cluster.consensus(position).quarantined(), None);
    }
    // The third replica makes a majority.
    cluster.restart(third).await;
    wait_for("the wrong one to be made anew", async || {
        let store = cluster.consensus(follower).store();
        (&store.get("/planted")?.value[..] == b"original").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_short_of_room_takes_only_what_does_not_grow_and_one_without_ends_the_master() {
    let disk = Arc::new(TestDisk::default());
    let shutdown = CancellationToken::new();
    let mut env = Env::production(Arc::new(TlsNetwork::joining()), shutdown.clone());
    env.disk = disk.clone();
    let directory = tempfile::tempdir().unwrap();
    let master = lone_master(directory.path(), &env).await.unwrap();
    write(&master, "/a", "value").await;
    disk.free_mib.store(200, Ordering::Relaxed);
    wait_for("the alarm", async || (!master.alarms().is_empty()).then_some(())).await;
    let refused = master.propose(create("/b", "value"), options()).await.unwrap_err();
    assert!(
        matches!(&refused, ProposeError::NoRoom { reason } if reason.contains("nearly full")),
        "{refused}"
    );
    let change = |mutation| Txn { preconditions: vec![], mutations: vec![mutation] };
    master.propose(change(put("/a", "other")), options()).await.unwrap();
    let larger = change(put("/a", "x".repeat(4096)));
    assert!(matches!(master.propose(larger, options()).await, Err(ProposeError::NoRoom { .. })));
    master.propose(change(Mutation::Delete { key: "/a".to_owned() }), options()).await.unwrap();
    disk.free_mib.store(300, Ordering::Relaxed);
    wait_for("the end of the alarm", async || master.alarms().is_empty().then_some(())).await;
    write(&master, "/b", "value").await;
    disk.free_mib.store(1, Ordering::Relaxed);
    let reason = master.failed().await;
    assert!(reason.starts_with("1 MiB of "), "{reason}");
    assert!(tokio::time::timeout(LONG, shutdown.cancelled()).await.is_ok());
    master.shutdown().await;
    drop(master);
    disk.free_mib.store(10_000, Ordering::Relaxed);
    env.shutdown = CancellationToken::new();
    let again = wait_for("the files are free", async || lone_master(directory.path(), &env).await.ok()).await;
    assert!(again.store().get("/b").is_some() && again.store().get("/a").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_does_not_answer_lets_another_master_lead() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let disk = cluster.masters[leader].disk.clone();
    disk.stalled.store(true, Ordering::Relaxed);
    // Something that the leader cannot make durable.
    let (stalled, proposed) = (cluster.consensus(leader).clone(), create("/stalled", "value"));
    let pending = tokio::spawn(async move { stalled.propose(proposed, options()).await });
    let other = wait_for("another leader", async || {
        let others = (0..3).filter(|position| *position != leader);
        others.into_iter().find(|at| cluster.consensus(*at).leadership().borrow().leading)
    })
    .await;
    write(cluster.consensus(other), "/after", "value").await;
    let kinds = |alarms: Vec<Alarm>| alarms.into_iter().map(|alarm| alarm.kind).collect::<Vec<_>>();
    assert_eq!(kinds(cluster.consensus(leader).alarms()), ["disk-stalled"]);
    disk.stalled.store(false, Ordering::Relaxed);
    wait_for("the end of the alarm", async || cluster.consensus(leader).alarms().is_empty().then_some(()))
        .await;
    let _ = pending.await.unwrap();
    cluster.converge().await;
}

/// A clock that panics once when it is told to.
#[derive(Default)]
struct Panicking(SystemClock, AtomicBool);

impl Clock for Panicking {
    fn now(&self) -> SystemTime {
        assert!(!self.1.swap(false, Ordering::AcqRel), "the clock's code panics");
        self.0.now()
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_is_watched_still_after_a_panic_of_that_task() {
    let (disk, clock) = (Arc::new(TestDisk::default()), Arc::new(Panicking::default()));
    let mut env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    (env.disk, env.clock) = (disk.clone(), clock.clone());
    let directory = tempfile::tempdir().unwrap();
    let master = lone_master(directory.path(), &env).await.unwrap();
    clock.1.store(true, Ordering::Release);
    disk.free_mib.store(200, Ordering::Relaxed);
    wait_for("the alarm", async || (!master.alarms().is_empty()).then_some(())).await;
    assert!(!clock.1.load(Ordering::Acquire), "nothing panicked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_does_not_stand_for_election() {
    let mut cluster = Cluster::of(3).await;
    write(cluster.any(), "/planted", "original").await;
    cluster.converge().await;
    let leader = cluster.leader().await;
    let [wrong, right] = [1, 2].map(|step| (leader + step) % 3);
    // Misses a leader much later than the wrong one, which would stand first.
    cluster.kill(right).await;
    let usual = std::mem::replace(&mut cluster.timers, [100, 2000, 3000].map(Duration::from_millis));
    cluster.restart(right).await;
    cluster.timers = usual;
    cluster.converge().await;
    let consensus = cluster.consensus(wrong).clone();
    // The wrong replica cannot be rebuilt meanwhile.
    let held = consensus.defence.hold_state().await;
    assert!(consensus.store().diverge("/planted", "original", "tampered").unwrap().is_some());
    let mut quarantine = consensus.defence.watch_quarantine();
    assert!(tokio::time::timeout(LONG, quarantine.wait_for(Option::is_some)).await.is_ok(), "nobody noticed");
    let before = consensus.vote_seen();
    cluster.kill(leader).await;
    wait_for("the right one leads", async || {
        let now = consensus.vote_seen();
        assert_ne!(now.candidate, consensus.node_id(), "the wrong one stood for election");
        (now != before && cluster.consensus(right).leadership().borrow().leading).then_some(())
    })
    .await;
    drop(held);
    wait_for("the replica to be right again", async || consensus.quarantined().is_none().then_some(())).await;
}
