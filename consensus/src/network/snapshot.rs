//! Snapshots on the wire: a header with the leader's vote and the snapshot's log position, then the frames
//! of `storage`. Frames are made only as fast as they are received, so neither side holds more than a few.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use proto_env::Blocking;
use proto_env::planted::{self, Bug};
use proto_wire::raft::SnapshotChunk;
use proto_wire::raft::raft_client::RaftClient;
use storage::codec::{decode, encode};
use storage::{Staged, Store};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{CallError, Lane, Peers};
use crate::raft_types::{LogId, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::state_machine::RaftSnapshot;
use crate::types::NodeId;

/// Time limit of sending a whole snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Time limit of waiting for the next frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of frames sent ahead of the receiver.
const FRAMES_AHEAD: usize = 4;

/// Vote, last log id and membership. `SnapshotMeta` itself cannot be encoded by a codec without field
/// names.
type Header = (Vote, Option<LogId>, StoredMembership);

pub(super) async fn send(
    peers: &Arc<Peers>,
    target: NodeId,
    mut client: RaftClient<Channel>,
    vote: Vote,
    snapshot: RaftSnapshot,
) -> Result<SnapshotResponse<TypeConfig>, CallError> {
    let local = |error: storage::Error| CallError::Local(error.to_string());
    if peers.is_quarantined() {
        return Err(CallError::Local("this replica differs from the others".to_owned()));
    }
    let SnapshotData::View(view) = snapshot.snapshot else {
        return Err(CallError::Local("only a view can be sent".to_owned()));
    };
    let mut last_log_id = snapshot.meta.last_log_id;
    // Planted: the snapshot says that it ends with the entry of another term.
    if planted::is(Bug::SnapshotOfAnotherTerm)
        && let Some(last) = &mut last_log_id
    {
        last.leader_id.term += 1;
    }
    let header: Header = (vote, last_log_id, snapshot.meta.last_membership);
    let header = encode("snapshot header", &header).map_err(local)?;
    let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
    let (objects, revision) = (view.objects(), view.revision());
    tracing::info!(target, objects, revision, "sending a snapshot");
    // Runs on the main runtime: encoding a whole state would delay heartbeats.
    let producer = peers.runtime().main().spawn(async move {
        let mut chunk = SnapshotChunk { header, data: Vec::new() };
        for frame in view.frames() {
            chunk.data = match frame {
                Ok(frame) => frame.into(),
                Err(error) => return tracing::error!(%error, "making a snapshot failed"),
            };
            match tokio::time::timeout(FRAME_TIMEOUT, sender.send(std::mem::take(&mut chunk))).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    });
    let call = client.install_snapshot(peers.request(target, ReceiverStream::new(receiver)));
    let answer = peers.call(target, Lane::Snapshot, SNAPSHOT_TIMEOUT, call).await;
    producer.abort();
    decode("snapshot response", &answer?.payload).map_err(local)
}

/// Receives a snapshot into a staged state.
pub(crate) async fn receive(
    store: &Arc<Store>,
    blocking: Blocking,
    mut chunks: Streaming<SnapshotChunk>,
) -> Result<(Vote, SnapshotMeta, Staged), Status> {
    let damaged = |error: storage::Error| Status::data_loss(error.to_string());
    let mut header: Option<Header> = None;
    let failed = |error: std::io::Error| Status::internal(error.to_string());
    let target = store.clone();
    let mut staging = blocking.run(move || target.stage()).await.map_err(failed)?.map_err(damaged)?;
    loop {
        let next = tokio::time::timeout(FRAME_TIMEOUT, chunks.next()).await;
        let Some(chunk) = next.map_err(|_| Status::deadline_exceeded("the snapshot stopped"))? else { break };
        let chunk = chunk?;
        if header.is_none() {
            header = Some(decode("snapshot header", &chunk.header).map_err(damaged)?);
        }
        staging.push(&chunk.data).map_err(damaged)?;
    }
    let (vote, last_log_id, last_membership) =
        header.ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
    let staged = blocking.run(move || staging.finish()).await.map_err(failed)?.map_err(damaged)?;
    Ok((vote, SnapshotMeta { last_log_id, last_membership }, staged))
}
