//! The guarantees of a cluster, with real logs, stores and TLS on loopback.

mod defence;
mod elections;
mod growth;
pub(crate) mod harness;
mod load;
mod loss;
mod repair;

use std::time::Duration;

use proto_env::MASTERS_ORGANIZATION;
use proto_env::grpc::{ChannelOptions, channel};
use proto_wire::raft::ReadIndexRequest;
use proto_wire::raft::raft_client::RaftClient;
use storage::{Applied, Command, Txn, TxnOutcome};

use self::harness::*;
use crate::proposer::{Arrival, Verdict};
use crate::*;

#[tokio::test(flavor = "multi_thread")]
async fn any_master_writes_and_reads_what_others_wrote() {
    let cluster = Cluster::of(3).await;
    for number in 0..30 {
        let writer = cluster.consensus(number % 3);
        let revision = write(writer, &format!("/k{number}"), "v").await;
        // After `Ok` the local store has applied the write.
        assert_eq!(writer.store().get(&format!("/k{number}")).unwrap().mod_revision, revision);
        let reader = cluster.consensus((number + 1) % 3);
        reader.read_barrier(LONG).await.unwrap();
        assert!(reader.store().get(&format!("/k{number}")).is_some());
    }
    assert_eq!(cluster.converge().await.objects, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_share_entries_and_each_has_its_own_revision() {
    let cluster = Cluster::of(3).await;
    let before = cluster.any().applied_index();
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..400 {
        let consensus = cluster.consensus(number % 3).clone();
        writes.spawn(async move { write(&consensus, &format!("/k{number}"), "v").await });
    }
    let mut revisions = writes.join_all().await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 400);
    let entries = cluster.any().applied_index() - before;
    assert!(entries < 300, "{entries} entries for 400 writes");
    assert_eq!(cluster.converge().await.objects, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_three_megabytes_is_replicated() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.consensus(cluster.follower().await);
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..8 {
        let follower = follower.clone();
        let value = vec![b'a' + number; 3 << 20];
        writes.spawn(async move {
            follower.propose(create(&format!("/large{number}"), value), options()).await.unwrap()
        });
    }
    for outcome in writes.join_all().await {
        assert!(matches!(outcome, TxnOutcome::Committed { .. }));
    }
    assert_eq!(cluster.converge().await.objects, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resent_proposal_is_applied_once() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.consensus(cluster.leader().await);
    let command = Command { id: [5; 16], born: 0, fence: None, txn: create("/once", "v") };
    let first = leader.proposals.local.propose(command.clone(), Arrival::Single, LONG).await;
    let second = leader.proposals.local.propose(command, Arrival::Single, LONG).await;
    let outcome = |verdict: Verdict| match verdict {
        Verdict::Applied { applied: Applied::Outcome(outcome), .. } => outcome,
        other => panic!("{other:?}"),
    };
    let first = outcome(first);
    assert!(matches!(first, TxnOutcome::Committed { .. }));
    assert_eq!(outcome(second), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_fenced_to_an_earlier_term_is_refused() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let term = cluster.consensus(leader).leadership().borrow().term;
    let fenced = ProposeOptions { fence: Some(term), deadline: LONG };
    let outcome = cluster.any().propose(create("/a", "v"), fenced).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Committed { .. }));
    cluster.kill(leader).await;
    cluster.leader().await;
    let outcome = cluster.any().propose(create("/b", "v"), fenced).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Fenced { term: now } if now > term), "{outcome:?}");
    assert!(cluster.any().store().get("/b").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_objects_revisions_and_members() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..50 {
        write(cluster.any(), &format!("/k{number}"), "v").await;
    }
    let before = cluster.converge().await;
    for position in 0..3 {
        cluster.kill(position).await;
    }
    for position in 0..3 {
        cluster.restart(position).await;
    }
    assert_eq!(cluster.converge().await, before);
    cluster.wait_voters(3).await;
    let revision = write(cluster.consensus(2), "/next", "v").await;
    assert_eq!(revision, before.revision + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let cluster = Cluster::one().await;
    let master = &cluster.masters[0];
    let call = async |authority: &Authority, organization: &str, cluster_id: &str, target: u64| {
        let options = ChannelOptions {
            purpose: proto_env::Purpose::Peer,
            organization: None,
            connect_timeout: Duration::from_secs(5),
        };
        let network = authority.network("stranger", organization);
        let channel = channel(network, &master.address.to_string(), options).unwrap();
        let mut request = tonic::Request::new(tokio_stream::once(ReadIndexRequest {}));
        request.metadata_mut().insert(crate::network::CLUSTER_KEY, cluster_id.parse().unwrap());
        request.metadata_mut().insert(crate::network::TARGET_KEY, target.into());
        let mut client = RaftClient::new(channel);
        let answers = client.read_index(request).await.map_err(|status| status.code())?;
        Ok::<_, tonic::Code>(answers.into_inner().message().await.unwrap().unwrap())
    };
    let member = call(&cluster.authority, MASTERS_ORGANIZATION, "test", master.id).await;
    assert!(member.unwrap().is_leader);
    let node = call(&cluster.authority, "system:nodes", "test", master.id).await;
    assert_eq!(node.unwrap_err(), tonic::Code::PermissionDenied);
    let other_cluster = call(&cluster.authority, MASTERS_ORGANIZATION, "other", master.id).await;
    assert_eq!(other_cluster.unwrap_err(), tonic::Code::PermissionDenied);
    assert!(call(&Authority::new(), MASTERS_ORGANIZATION, "test", master.id).await.is_err());
    // A master refuses calls meant for another id, even at the same address.
    let another = call(&cluster.authority, MASTERS_ORGANIZATION, "test", master.id + 1).await;
    assert_eq!(another.unwrap_err(), tonic::Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_master_is_refused() {
    let mut cluster = Cluster::one().await;
    cluster.kill(0).await;
    let directory = tempfile::tempdir().unwrap();
    let identity = MemberIdentity { node_id: 7, cluster_id: "a".to_owned() };
    assert_eq!(MemberIdentity::load(directory.path(), &proto_env::SystemDisk).unwrap(), None);
    identity.claim(directory.path(), &proto_env::SystemDisk).unwrap();
    identity.claim(directory.path(), &proto_env::SystemDisk).unwrap();
    let other = MemberIdentity { node_id: 8, cluster_id: "a".to_owned() };
    assert!(other.claim(directory.path(), &proto_env::SystemDisk).is_err());
    assert_eq!(MemberIdentity::load(directory.path(), &proto_env::SystemDisk).unwrap(), Some(identity));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_lost_its_log_does_not_come_back_as_the_same_voter() {
    let cluster = Cluster::one().await;
    let directory = tempfile::tempdir().unwrap();
    let mut config = cluster.masters[0].config(cluster.timers);
    config.data_dir = directory.path().to_owned();
    let identity = MemberIdentity { node_id: config.node_id, cluster_id: config.cluster_id.clone() };
    let check = |config: &ConsensusConfig| {
        identity.check(config, &proto_env::SystemDisk).map_err(|error| error.to_string())
    };
    // The directory belongs to no master yet.
    check(&config).unwrap();
    // All data is gone, except for the note that it was a master.
    config.started_before = true;
    assert!(check(&config).unwrap_err().contains("has lost its log"));
    config.started_before = false;
    identity.claim(directory.path(), &proto_env::SystemDisk).unwrap();
    for part in ["log", "objects"] {
        assert!(check(&config).unwrap_err().contains(&format!("has lost its {part}")));
        std::fs::create_dir(directory.path().join(part)).unwrap();
        // An empty mount point is not a log either.
        assert!(check(&config).unwrap_err().contains(&format!("has lost its {part}")));
        std::fs::write(directory.path().join(part).join("file"), "").unwrap();
    }
    check(&config).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_with_the_name_of_a_running_master_is_refused() {
    let cluster = Cluster::of(3).await;
    for master in &cluster.masters {
        let refused = cluster.any().add_master(master.master_address(), LONG).await.unwrap_err();
        assert!(
            matches!(&refused, ChangeError::Refused(reason) if reason.contains("is running")),
            "{refused}"
        );
    }
    assert_eq!(cluster.any().members().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_transaction_has_an_outcome() {
    let cluster = Cluster::one().await;
    let outcome = cluster.any().propose(Txn::default(), options()).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Committed { revisions: vec![] });
}
