//! Clusters that grow from one master to three and five and shrink again, always with an odd number of
//! voters.

use super::harness::*;
use crate::*;

fn voters(consensus: &Consensus) -> Vec<NodeId> {
    consensus.members().into_iter().filter(|member| member.voter).map(|member| member.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_waits_as_a_learner_until_two_can_vote() {
    let mut cluster = Cluster::one().await;
    let second = cluster.join().await;
    write(cluster.any(), "/a", "v").await;
    wait_for("the learner follows", async || cluster.consensus(1).store().get("/a").is_some().then_some(()))
        .await;
    let waiting = cluster.any().members();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().any(|member| member.id == second && !member.voter));
    let third = cluster.join().await;
    cluster.wait_voters(3).await;
    assert_eq!(voters(cluster.any()), vec![FIRST_NODE_ID, second, third]);
    assert!(FIRST_NODE_ID < second && second < third);
    write(cluster.consensus(2), "/b", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_again_without_a_failed_write() {
    let mut cluster = Cluster::of(3).await;
    let consensus = cluster.consensus(0).clone();
    let stop = proto_env::CancellationToken::new();
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.is_cancelled() {
            write(&consensus, &format!("/w{number}"), "v").await;
            number += 1;
        }
        number
    });
    cluster.join().await;
    cluster.join().await;
    cluster.wait_voters(5).await;
    let gone = [cluster.masters[1].id, cluster.masters[2].id];
    let refused = cluster.any().remove_master(gone[0], LONG).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::Refused(why) if why.contains("4 of 5")), "{refused}");
    cluster.consensus(3).remove_masters(&gone, LONG).await.unwrap();
    wait_for("three voters are left", async || (voters(cluster.consensus(0)).len() == 3).then_some(())).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    cluster.leader().await;
    stop.cancel();
    let written = writer.await.unwrap();
    assert_eq!(cluster.converge().await.objects, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_even_size_is_refused_and_a_replacement_is_swapped_in() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let gone = cluster.masters[follower].id;
    let refused = cluster.any().remove_master(gone, LONG).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::Refused(why) if why.contains("2 of 3")), "{refused}");
    cluster.kill(follower).await;
    let substitute = cluster.join().await;
    wait_for("the substitute is caught up and swapped in", async || {
        cluster.consensus(leader).remove_master(gone, LONG).await.ok()
    })
    .await;
    let now = voters(cluster.consensus(leader));
    assert!(now.contains(&substitute) && !now.contains(&gone) && now.len() == 3, "{now:?}");
    assert!(cluster.consensus(leader).members().iter().all(|member| member.id != gone));
    write(cluster.any(), "/after", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut cluster = Cluster::of(3).await;
    cluster.join().await;
    let leader = cluster.leader().await;
    let gone = cluster.masters[leader].id;
    let other = cluster.follower().await;
    wait_for("the leader is swapped out", async || {
        cluster.consensus(other).remove_master(gone, LONG).await.ok()
    })
    .await;
    assert!(!voters(cluster.consensus(other)).contains(&gone));
    write(cluster.consensus(other), "/after", "v").await;
    let heir = cluster.masters[cluster.leader().await].id;
    assert_ne!(heir, gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_transferred_on_request() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.follower().await;
    let to = cluster.masters[follower].id;
    cluster.consensus(follower).transfer_leader(to, LONG).await.unwrap();
    wait_for("the follower leads", async || {
        cluster.consensus(follower).leadership().borrow().leading.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_just_joined_can_be_removed() {
    let cluster = Cluster::of(1).await;
    let alone = cluster.any();
    for number in 0..100 {
        let joiner = MasterAddress { name: format!("j{number}"), ..MasterAddress::default() };
        let id = alone.add_master(joiner, LONG).await.unwrap();
        alone.remove_master(id, LONG).await.unwrap();
        assert!(alone.members().iter().all(|member| member.id != id), "{:?}", alone.members());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_made_in_part_is_finished_by_the_next_attempt() {
    let cluster = Cluster::of(1).await;
    let alone = cluster.any();
    let mut ids = vec![];
    for name in ["a", "b"] {
        let joiner = MasterAddress { name: name.to_owned(), ..MasterAddress::default() };
        ids.push(alone.add_master(joiner, LONG).await.unwrap());
    }
    alone.remove_master(ids[0], LONG).await.unwrap();
    alone.remove_masters(&ids, LONG).await.unwrap();
    assert_eq!(alone.members().len(), 1, "{:?}", alone.members());
    alone.remove_masters(&ids, LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_comes_back_at_another_address_is_a_member_still() {
    let mut cluster = Cluster::of(3).await;
    let follower = cluster.follower().await;
    cluster.kill(follower).await;
    write(cluster.any(), "/a", "v").await;
    cluster.restart_elsewhere(follower).await;
    let address = cluster.masters[follower].address.to_string();
    let id = cluster.masters[follower].id;
    wait_for("everyone knows the new address", async || {
        let known = |consensus: &std::sync::Arc<Consensus>| {
            consensus.members().iter().any(|member| member.id == id && member.peer_address == address)
        };
        cluster.running().all(known).then_some(())
    })
    .await;
    assert_eq!(cluster.converge().await.objects, 1);
}
