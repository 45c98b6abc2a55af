//! A disk that has stopped answering: a write of the log that does not become durable for seconds. A leader
//! then raises an alarm and lets another master lead, since it answers heartbeats but no write. `elections.rs`
//! knows since when the oldest write is under way; the disk itself is not asked, since the call might hang.

use std::sync::Arc;
use std::time::Duration;

use crate::alarms::AlarmKind;
use crate::consensus::Consensus;

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a write may take to become durable: far longer than on a disk that is merely busy, whose
/// measured delays the failure detector follows.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Watches the log's writes until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let waits = consensus.elections.oldest_write_waits();
        if waits < STALLED_AFTER {
            consensus.defence.alarms().clear(AlarmKind::DiskStalled);
            continue;
        }
        let (seconds, directory) = (waits.as_secs(), consensus.data_dir.display());
        let reason = format!("a write to {directory} has not become durable for {seconds} s");
        consensus.defence.raise(AlarmKind::DiskStalled, reason);
        consensus.let_another_lead("its disk does not answer").await;
    }
}
