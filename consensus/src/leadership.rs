//! The watch of who leads, derived from openraft's metrics and from the failure detector's view of the
//! other masters (`elections.rs`). This file also stops the node when openraft has failed, and keeps the
//! log within its size.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};

use crate::alarms::AlarmKind;
use crate::consensus::Consensus;
use crate::raft_types::TypeConfig;
use crate::types::Leadership;

/// Time between two looks at conditions that change only with time.
const TICK: Duration = Duration::from_millis(100);
/// Number of entries kept in an early purge, for followers that lag a little.
const LOG_ENTRIES_KEPT: u64 = 256;

/// Keeps the watch of who leads up to date until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    let mut metrics = consensus.raft.metrics();
    let mut server = consensus.raft.server_metrics();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut membership = None;
    loop {
        let known = server.borrow_and_update().clone();
        let now = metrics.borrow_and_update().clone();
        if *now.membership_config.log_id() != membership {
            membership = *now.membership_config.log_id();
            let nodes = now.membership_config.nodes();
            consensus.peers.members(nodes.map(|(id, info)| (*id, info.peer_address.clone())));
        }
        if let Err(error) = &now.running_state {
            if !consensus.stop.is_cancelled() {
                tracing::error!(%error, "the consensus has failed; this master stops");
                consensus.give_up(AlarmKind::StoreFailed, error.to_string()).await;
            }
            return;
        }
        let next = consensus.judge(&now);
        // Every entry changes the metrics several times; the changes matter only while leadership is not
        // settled.
        let settled = next.quorum
            && next.leading == (now.state == ServerState::Leader)
            && (now.state, now.current_leader, now.vote) == (known.state, known.current_leader, known.vote)
            && now.membership_config == known.membership_config;
        consensus.leadership.send_if_modified(|current| {
            let changed = *current != next;
            if changed && (current.leader, current.leading) != (next.leader, next.leading) {
                tracing::info!(term = next.term, leader = next.leader, leading = next.leading, "leadership");
            }
            *current = next;
            changed
        });
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            // Polled first, because metrics may change far more often.
            _ = ticks.tick() => {
                let now = metrics.borrow_watched().clone();
                consensus.bound_log(&now).await;
            }
            changed = server.changed() => if changed.is_err() && metrics.borrow_watched().running_state.is_ok() {
                // The consensus has ended without an error to report, because its task panicked.
                if !consensus.stop.is_cancelled() {
                    tracing::error!("the consensus has ended by itself; this master stops");
                    let reason = "the consensus has ended by itself".to_owned();
                    consensus.give_up(AlarmKind::StoreFailed, reason).await;
                }
                return;
            },
            // `server` also reports that the sender is gone.
            _ = metrics.changed(), if !settled => {}
        }
    }
}

impl Consensus {
    fn judge(&self, metrics: &RaftMetrics<TypeConfig>) -> Leadership {
        let is_leader = metrics.state == ServerState::Leader;
        let quorum = if is_leader {
            let alone = metrics.membership_config.voter_ids().count() == 1;
            alone || (metrics.last_quorum_acked.is_some() && self.elections.in_touch_with_quorum())
        } else {
            metrics.current_leader.is_some() && self.elections.in_touch_with_leader()
        };
        let term = metrics.current_term;
        let applied = metrics.last_applied.as_ref().is_some_and(|last| last.leader_id.term == term);
        let leading = is_leader && applied && quorum && self.quarantined().is_none();
        Leadership { term, leader: metrics.current_leader, leading, quorum }
    }

    /// Purges the log early if it is too large on disk, since large values fill it long before the number of
    /// entries does, or if earlier runs of this master left entries: openraft counts them from the start on,
    /// so a master that restarts often enough would never purge any.
    async fn bound_log(&self, metrics: &RaftMetrics<TypeConfig>) {
        let snapshot = metrics.snapshot.map_or(0, |id| id.index);
        let purged = metrics.purged.map_or(0, |id| id.index);
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        // When disk space is short, entries that are not needed are purged sooner.
        let bound = if self.is_short_of_space() { self.log_bytes / 8 } else { self.log_bytes };
        let left_behind = snapshot > purged + self.snapshot_count;
        let result = if left_behind {
            self.raft.trigger().purge_log(snapshot - self.snapshot_count / 2).await
        } else if self.log.disk_bytes() < bound {
            Ok(())
        } else if snapshot > purged + LOG_ENTRIES_KEPT {
            self.raft.trigger().purge_log(snapshot - LOG_ENTRIES_KEPT).await
        } else if applied > snapshot + LOG_ENTRIES_KEPT / 2 {
            self.raft.trigger().snapshot().await
        } else {
            Ok(())
        };
        if let Err(error) = result {
            tracing::warn!(%error, "keeping the log within its size failed");
        }
    }
}
