//! A leader that had better not lead hands leadership over: `disk_space.rs` when its disk is nearly full,
//! `disk_stall.rs` when its disk does not answer.

use openraft::async_runtime::watch::WatchReceiver;

use crate::alarms::AlarmKind;
use crate::consensus::Consensus;
use crate::types::NodeId;

impl Consensus {
    /// Transfers leadership to a caught-up voter whose disk is well, if there is one, and says why.
    pub(crate) async fn let_another_lead(&self, why: &str) {
        if !self.raft.is_leader() {
            return;
        }
        let healthy: Vec<NodeId> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let last = metrics.last_log_index.unwrap_or(0);
            let close = |index: u64| index + 256 >= last;
            let replication = metrics.replication.iter().flatten();
            let close = replication.filter(|(_, at)| at.as_ref().is_some_and(|at| close(at.index)));
            close.map(|(id, _)| *id).collect()
        };
        let voters: Vec<NodeId> = self.members().iter().filter(|it| it.voter).map(|it| it.id).collect();
        let fit = |id: &&NodeId| {
            **id != self.node_id
                && voters.contains(id)
                && self.membership.is_running(**id)
                && !self.defence.alarms().has(**id, AlarmKind::NoSpace)
                && !self.defence.alarms().has(**id, AlarmKind::DiskStalled)
                && !self.defence.alarms().has(**id, AlarmKind::Diverged)
        };
        for to in healthy.iter().filter(fit) {
            tracing::info!(to, why, "this master lets another one lead");
            if self.membership.transfer(*to).await.is_ok() {
                return;
            }
        }
    }
}
