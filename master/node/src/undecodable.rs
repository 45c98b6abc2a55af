//! Shows objects that do not decode in `ephor status`: the informers of this master skip them, so an
//! operator has to repair or delete them. Started by `build.rs`, on every master.

use std::sync::Arc;

use consensus::{AlarmKind, Consensus};
use proto_decode::BrokenObjects;
use tokio_util::sync::CancellationToken;

/// Keeps the alarm in step with `broken`, until `shutdown`.
pub async fn report(consensus: Arc<Consensus>, broken: BrokenObjects, shutdown: CancellationToken) {
    let mut changes = broken.changes();
    loop {
        changes.mark_unchanged();
        consensus.set_alarm(AlarmKind::UndecodableObjects, broken.summary());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
