//! The rebuild of a replica that differs from the majority: it discards its state and takes the leader's.
//! Meanwhile nothing is applied, but the log goes on. A leader that itself differs transfers leadership
//! first.

use std::sync::Arc;
use std::time::Duration;

use proto_wire::raft::{FetchSnapshotRequest, SnapshotChunk};
use storage::Staged;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::consensus::Consensus;
use crate::membership::address_of;
use crate::network::Lane;
use crate::state_machine::{Applied, decode_applied};
use crate::types::NodeId;

/// Pause before the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Time limit of waiting for the next frame, and of opening the call.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the leader waits until it has applied the requested entry.
const APPLIED_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of frames sent ahead of the receiver.
const FRAMES_AHEAD: usize = 4;

impl Consensus {
    /// Replaces this replica's state by the leader's. `healthy` masters agree with the majority. Returns
    /// when that is done or the node stops.
    pub(crate) async fn rebuild(self: &Arc<Self>, healthy: &[NodeId]) {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.rebuild_until_done(healthy) => {}
        }
    }

    async fn rebuild_until_done(&self, healthy: &[NodeId]) {
        // While this lock is held nothing is applied.
        let mut applied = self.defence.hold_state().await;
        loop {
            if self.raft.is_leader() {
                self.step_down(healthy).await;
            } else {
                let from = applied.last.map_or(0, |last| last.index);
                match self.fetch_snapshot(from).await {
                    Ok(staged) => {
                        let revision = staged.revision();
                        match self.replace(&mut applied, staged) {
                            Ok(()) => {
                                return tracing::info!(
                                    revision,
                                    "the leader's state has taken the place of this one"
                                );
                            }
                            Err(error) => tracing::error!(%error, "installing the leader's state failed"),
                        }
                    }
                    Err(reason) => {
                        tracing::warn!(reason, "the leader's state could not be taken; it is tried again")
                    }
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Transfers leadership to one of the `healthy` masters.
    async fn step_down(&self, healthy: &[NodeId]) {
        for to in healthy.iter().filter(|to| **to != self.node_id) {
            if self.membership.transfer(*to).await.is_ok() {
                return;
            }
        }
    }

    fn replace(&self, applied: &mut Applied, staged: Staged) -> storage::Result<()> {
        let (last, membership) = decode_applied(staged.applied())?;
        self.store.install(staged)?;
        let index = last.map_or(0, |last| last.index);
        applied.last = last;
        applied.membership = membership;
        self.defence.is_durable_to(index);
        applied.index.send_replace(index);
        Ok(())
    }

    /// Receives the leader's state, which includes the entry at `index`, and stages it.
    async fn fetch_snapshot(&self, index: u64) -> Result<Staged, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let leader = self.leadership.borrow().leader.ok_or("no leader is known")?;
        let address = address_of(&self.raft, leader).ok_or("the leader's address is not known")?;
        let mut client = self.peers.client(leader, &address, Lane::Snapshot).map_err(|error| text(&error))?;
        let request = FetchSnapshotRequest { index };
        let call = client.fetch_snapshot(self.peers.request(leader, request));
        let chunks = self.peers.call(leader, Lane::Snapshot, FRAME_TIMEOUT, call).await;
        let mut chunks = chunks.map_err(|error| text(&error))?;
        let store = self.store.clone();
        let staging = self.env.blocking.run(move || store.stage()).await;
        let mut staging = staging.map_err(|error| text(&error))?.map_err(|error| text(&error))?;
        loop {
            let next = tokio::time::timeout(FRAME_TIMEOUT, chunks.next()).await;
            let Some(chunk) = next.map_err(|_| "the snapshot stopped")? else { break };
            let chunk = chunk.map_err(|status| text(&status))?;
            staging.push(&chunk.data).map_err(|error| text(&error))?;
        }
        let staged = self.env.blocking.run(move || staging.finish()).await;
        let staged = staged.map_err(|error| text(&error))?.map_err(|error| text(&error))?;
        let (last, _) = decode_applied(staged.applied()).map_err(|error| text(&error))?;
        match last {
            Some(last) if last.index >= index => Ok(staged),
            _ => Err(format!("the leader's state is older than log entry {index}")),
        }
    }

    /// Sends this leader's state to another master.
    pub(crate) async fn give_snapshot(
        &self,
        index: u64,
    ) -> Result<ReceiverStream<Result<SnapshotChunk, Status>>, Status> {
        if !self.raft.is_leader() || self.quarantined().is_some() {
            return Err(Status::failed_precondition("this master does not lead, or must not be copied"));
        }
        let mut applied = self.applied_index.clone();
        let wait = applied.wait_for(|applied| *applied >= index);
        if !matches!(tokio::time::timeout(APPLIED_TIMEOUT, wait).await, Ok(Ok(_))) {
            return Err(Status::unavailable(format!("log entry {index} is not applied here yet")));
        }
        let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
        let store = self.store.clone();
        self.runtime.main().spawn(async move {
            let view = store.view();
            for frame in view.frames() {
                let chunk = frame
                    .map(|data| SnapshotChunk { header: Vec::new(), data: data.into() })
                    .map_err(|error| Status::internal(error.to_string()));
                match tokio::time::timeout(FRAME_TIMEOUT, sender.send(chunk)).await {
                    Ok(Ok(())) => {}
                    _ => return,
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}
