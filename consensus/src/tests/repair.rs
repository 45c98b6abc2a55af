//! Masters that are lost, removed or moved, and clusters that are recovered from
//! one of them.

use std::time::Duration;

use storage::WatchClosed;

use super::harness::*;
use crate::recovery::Recovery;
use crate::*;

const SECOND: Duration = Duration::from_secs(1);

fn voters(consensus: &Consensus) -> Vec<NodeId> {
    consensus.members().into_iter().filter(|member| member.voter).map(|member| member.id).collect()
}

/// Waits until a master that was just started fails; returns the reason.
async fn end_of(consensus: &Consensus) -> String {
    tokio::time::timeout(LONG, consensus.failed()).await.expect("it goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_makes_place_for_a_waiting_learner_by_itself() {
    let mut cluster = Cluster::one().await;
    cluster.autopilot.dead_after = Some(SECOND);
    cluster.kill(0).await;
    cluster.masters[0].autopilot = cluster.autopilot;
    cluster.restart(0).await;
    cluster.leader().await;
    while cluster.masters.len() < 3 {
        cluster.join().await;
    }
    cluster.wait_voters(3).await;
    let spare = cluster.join().await;
    let victim = cluster.follower().await;
    let dead = cluster.masters[victim].id;
    cluster.kill(victim).await;
    wait_for("the spare one votes", async || {
        let now = voters(cluster.any());
        (now.contains(&spare) && !now.contains(&dead)).then_some(())
    })
    .await;
    assert_eq!(voters(cluster.any()).len(), 3);
    let leader = cluster.leader().await;
    wait_for("the leader says what it did", async || {
        let action = cluster.consensus(leader).autopilot_actions().borrow().clone();
        action.text.contains("was replaced by").then_some(())
    })
    .await;
    // The removed master comes back, is told so, and does not start again.
    cluster.restart(victim).await;
    let why = end_of(cluster.consensus(victim)).await;
    assert!(why.contains("is no member any more"), "{why}");
    cluster.kill(victim).await;
    let again = cluster.masters[victim].config(cluster.timers);
    let network = cluster.masters[victim].network.clone();
    let refused = Consensus::start(again, env(&network)).await.err().expect("it starts");
    assert!(refused.to_string().contains("join again"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_never_comes_up_is_forgotten_and_is_in_nobodys_way() {
    let mut cluster = Cluster::one().await;
    cluster.kill(0).await;
    cluster.masters[0].autopilot.learner_expiry = Some(SECOND);
    cluster.restart(0).await;
    cluster.leader().await;
    let info = MasterAddress { name: "never".to_owned(), ..cluster.masters[0].master_address() };
    let never = cluster.any().add_master(info, LONG).await.unwrap();
    cluster.join().await;
    cluster.join().await;
    // The two live learners become voters, the one that never came up does not.
    wait_for("three voters", async || (voters(cluster.any()).len() == 3).then_some(())).await;
    assert!(!voters(cluster.any()).contains(&never));
    wait_for("the one that never came up is forgotten", async || {
        (!cluster.any().members().iter().any(|member| member.id == never)).then_some(())
    })
    .await;
    write(cluster.any(), "/after", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_takes_the_place_of_the_one_it_names() {
    let mut cluster = Cluster::of(3).await;
    // Replacing the leader itself makes it transfer leadership first.
    let old = cluster.masters[cluster.leader().await].id;
    let unknown = MasterAddress { name: "x".to_owned(), replaces: 77, ..cluster.masters[0].master_address() };
    let refused = cluster.any().add_master(unknown, LONG).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::Refused(why) if why.contains("77 does not vote")), "{refused}");
    let new = cluster.join_in_place_of(old).await;
    let watcher = cluster.masters.iter().position(|master| master.id == new).unwrap();
    wait_for("the swap", async || {
        let now = voters(cluster.consensus(watcher));
        (now.contains(&new) && !now.contains(&old) && now.len() == 3).then_some(())
    })
    .await;
    write(cluster.consensus(watcher), "/after", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_masters_find_one_another_at_new_addresses_when_one_is_pointed_out() {
    let mut cluster = Cluster::of(3).await;
    write(cluster.any(), "/a", "v").await;
    cluster.converge().await;
    for position in 0..3 {
        cluster.kill(position).await;
    }
    cluster.restart_elsewhere(0).await;
    let first = cluster.masters[0].address.to_string();
    for position in 1..3 {
        cluster.masters[position].peers = vec![first.clone()];
        cluster.restart_elsewhere(position).await;
    }
    write(cluster.consensus(2), "/b", "v").await;
    let addresses: Vec<String> = cluster.masters.iter().map(|master| master.address.to_string()).collect();
    wait_for("everyone knows everyone's new address", async || {
        let known = |consensus: &std::sync::Arc<Consensus>| {
            consensus.members().iter().all(|member| addresses.contains(&member.peer_address))
        };
        cluster.running().all(known).then_some(())
    })
    .await;
    assert_eq!(cluster.converge().await.objects, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_master_of_three_becomes_a_cluster_and_the_others_are_fenced() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..20 {
        write(cluster.any(), &format!("/k{number}"), "v").await;
    }
    let before = cluster.converge().await;
    let used: Vec<NodeId> = cluster.masters.iter().map(|master| master.id).collect();
    // The master still runs, so its data directory is not opened.
    let key = [9; 32];
    let (directory, network) = (cluster.masters[0].directory.clone(), cluster.masters[0].network.clone());
    let running = {
        let (directory, network) = (directory.clone(), network.clone());
        tokio::task::spawn_blocking(move || Recovery::open(&directory, key, &env(&network)).err())
            .await
            .unwrap()
    };
    assert!(running.unwrap().to_string().contains("is running: stop it first"));
    for position in 0..3 {
        cluster.kill(position).await;
    }
    // An interrupted recovery keeps the master from starting; when repeated, the plan is the same.
    let mut plan = None;
    for attempt in 0..3 {
        let recovery = Recovery::open(&directory, key, &env(&network)).unwrap();
        assert_eq!(recovery.begun(), plan.as_ref(), "attempt {attempt}");
        if plan.is_none() {
            assert_eq!(recovery.found().revision, before.revision);
            assert_eq!(recovery.found().members.len(), 3);
            plan = Some(recovery.plan("recovered".to_owned()).unwrap());
        }
        recovery.rewrite(plan.as_ref().unwrap()).await.unwrap();
        drop(recovery);
        let refused = Consensus::start(cluster.masters[0].config(cluster.timers), env(&network)).await;
        assert!(refused.err().unwrap().to_string().contains("recover --from-this-node"));
    }
    let plan = plan.unwrap();
    Recovery::open(&directory, key, &env(&network)).unwrap().finish().unwrap();
    assert!(used.iter().all(|id| *id < plan.new.node_id));
    cluster.masters[0].id = plan.new.node_id;
    cluster.masters[0].cluster_id = plan.new.cluster_id.clone();
    cluster.restart(0).await;
    let revision = write(cluster.consensus(0), "/new", "v").await;
    assert!(revision > before.revision + 999_999_999, "{revision}");
    let survivor = cluster.consensus(0).clone();
    assert_eq!(survivor.store().len(), 21);
    assert_eq!(voters(&survivor), [plan.new.node_id]);
    // A watch from an earlier revision would miss the lost changes, so it is refused.
    assert!(survivor.store().watch("/", before.revision + 5).is_err());
    // The other masters were a majority of the old cluster. They come back, and stop.
    for position in 1..3 {
        cluster.restart(position).await;
    }
    for position in 1..3 {
        let why = end_of(cluster.consensus(position)).await;
        assert!(why.contains("cluster test was recovered as cluster recovered"), "{why}");
        cluster.kill(position).await;
    }
    assert_eq!(voters(&survivor), [plan.new.node_id]);
    write(&survivor, "/more", "v").await;
    // The other masters join again, by the log or by a snapshot, and hold the same state.
    for position in 1..3 {
        cluster.masters[position].directory.set_extension("anew");
        cluster.masters[position].cluster_id = plan.new.cluster_id.clone();
        let info = cluster.masters[position].master_address();
        cluster.masters[position].id = survivor.add_master(info, LONG).await.unwrap();
        cluster.restart(position).await;
    }
    cluster.wait_voters(3).await;
    assert_eq!(cluster.converge().await.objects, 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_where_revisions_are_raised() {
    let store = storage::Store::in_memory(storage::Limits::default()).unwrap();
    let mut watch = store.watch("/", 0).unwrap();
    let entry = storage::Entry { index: 1, term: 1, commands: vec![], raise: 1000 };
    store.apply(vec![entry], vec![]).unwrap();
    assert_eq!(store.revision(), 1000);
    assert!(matches!(watch.next().await, Err(WatchClosed::Lagged)));
    assert!(store.watch("/", 999).is_err());
    assert!(store.watch("/", 1000).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_without_members_are_no_whole_master() {
    let cluster = Cluster::one().await;
    let master = &cluster.masters[0];
    let directory = tempfile::tempdir().unwrap();
    let mut config = master.config(cluster.timers);
    config.data_dir = directory.path().to_owned();
    let key = storage::DataKey::new(config.data_key);
    let env = env(&master.network);
    let store =
        storage::Store::open(&directory.path().join("objects"), &key, &env, storage::Limits::default())
            .unwrap();
    let applied: (Option<raft_types::LogId>, raft_types::StoredMembership) =
        (Some(raft_types::LogId::new_term_index(3, 7)), Default::default());
    store.apply(vec![], storage::codec::encode("applied state", &applied).unwrap()).unwrap();
    store.sync().unwrap();
    drop(store);
    let refused = Consensus::start(config, env).await.err().expect("it starts");
    assert!(refused.to_string().contains("knows no masters"), "{refused}");
}
