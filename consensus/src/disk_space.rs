//! Free space on the disk. Below a reserve a master raises an alarm, transfers leadership to a master with
//! space, and as leader refuses writes that make the objects grow. Well before the disk is full it stops
//! cleanly, to be started again when there is space. This file also rewrites the object store when its
//! files have grown too large.

use std::sync::Arc;
use std::time::Duration;

use proto_env::Space;
use storage::{Mutation, Rewritten, Txn};

use crate::alarms::AlarmKind;
use crate::consensus::Consensus;
use crate::types::NodeId;

/// Time between two checks of the free space.
const INTERVAL: Duration = Duration::from_secs(1);
/// Number of checks of the free space between two checks of the object store's size.
const REWRITE_EVERY: u64 = 30;
/// Bytes by which an object may still grow when it is replaced: a status, a timestamp.
const SLACK_BYTES: usize = 256;
/// Time limit of telling other masters the alarms, and of transferring leadership.
const FAREWELL: Duration = Duration::from_secs(2);
/// Why a master without space lets another one lead.
const SHORT: &str = "it is short of space";

/// The space to keep free on the data directory's disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskReserve {
    /// Bytes to keep free; 0: the lesser of 256 MiB and 5 % of the disk.
    pub bytes: u64,
}

/// How much space is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Enough,
    /// Less than the reserve is free.
    Short,
    /// So little is free that the next write may fail.
    Gone,
}

/// Returns the level of the free space. Once short, somewhat more than the reserve has to be free, so that
/// the alarm does not come and go.
fn level(space: Space, reserve: u64, short: bool) -> Level {
    let wanted = space.reserve(reserve);
    if space.free < space.floor(reserve) {
        Level::Gone
    } else if space.free < if short { wanted + wanted / 8 } else { wanted } {
        Level::Short
    } else {
        Level::Enough
    }
}

/// Watches the disk until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    let mut looks: u64 = 0;
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        looks += 1;
        let (disk, directory) = (consensus.env.disk.clone(), consensus.data_dir.clone());
        let asked = consensus.env.blocking.run(move || disk.space(&directory)).await;
        // A disk that does not report its space is taken to be unlimited.
        let Ok(Ok(Some(space))) = asked else { continue };
        if !consensus.look_at_space(space).await {
            return;
        }
        if looks.is_multiple_of(REWRITE_EVERY) {
            consensus.rewrite_if_bloated(space).await;
        }
    }
}

impl Consensus {
    /// Returns whether less space is free on this master's disk than it has to keep free.
    pub fn is_short_of_space(&self) -> bool {
        self.defence.is_short_of_space()
    }

    /// Acts on the free space. Returns false once this master has given up.
    async fn look_at_space(&self, space: Space) -> bool {
        let reserve = self.defence.reserve().bytes;
        let level = level(space, reserve, self.is_short_of_space());
        self.defence.note_space(space.free, level != Level::Enough);
        let text = || {
            format!(
                "{} MiB of {} are free in {}, {} are to be kept free",
                space.free >> 20,
                space.total >> 20,
                self.data_dir.display(),
                space.reserve(reserve) >> 20
            )
        };
        match level {
            Level::Enough => self.defence.alarms().clear(AlarmKind::NoSpace),
            Level::Short => {
                self.defence.raise(AlarmKind::NoSpace, text());
                self.let_another_lead(SHORT).await;
            }
            Level::Gone => {
                let _ = tokio::time::timeout(FAREWELL, self.let_another_lead(SHORT)).await;
                self.give_up(AlarmKind::NoSpace, text()).await;
            }
        }
        level != Level::Gone
    }

    /// Declares this member failed for good: raises an alarm, tells it to the other masters, and then wakes
    /// the callers of [`Consensus::failed`].
    pub(crate) async fn give_up(&self, kind: AlarmKind, reason: String) {
        self.defence.raise(kind, reason.clone());
        let _ = tokio::time::timeout(FAREWELL, self.tell_alarms()).await;
        self.defence.fail(reason);
        self.env.shutdown.cancel();
    }

    /// Returns why a leader refuses a transaction for lack of space: on its own disk, or on those of so
    /// many voters that they might stop. `None`: it accepts the transaction.
    pub(crate) fn no_room_for(&self, txn: &Txn) -> Option<String> {
        let voters: Vec<NodeId> = self.members().iter().filter(|it| it.voter).map(|it| it.id).collect();
        let short = |id: &&NodeId| {
            if **id == self.node_id {
                self.is_short_of_space()
            } else {
                self.defence.alarms().has(**id, AlarmKind::NoSpace)
            }
        };
        let with_room = voters.len() - voters.iter().filter(short).count();
        if !self.is_short_of_space() && with_room > voters.len() / 2 || !self.grows(txn) {
            return None;
        }
        Some("the masters' disks are nearly full: free some space, or delete objects".to_owned())
    }

    /// Returns whether the objects are larger after a transaction.
    fn grows(&self, txn: &Txn) -> bool {
        let (mut before, mut after) = (0, 0);
        for mutation in &txn.mutations {
            if let Mutation::Put { key, value } = mutation {
                after += value.len();
                before += self.store.get(key).map_or(0, |object| object.value.len() + SLACK_BYTES);
            }
        }
        after > before
    }

    /// Rewrites the object store if its files are far larger than their content.
    async fn rewrite_if_bloated(&self, space: Space) {
        let store = self.store.clone();
        let rewritten = self.env.blocking.run(move || {
            let sizes = store.sizes();
            // Both the old files and the copy need space during the rewrite.
            if !store.is_bloated() || space.free < sizes.object_bytes.saturating_mul(2) {
                return None;
            }
            tracing::info!(
                disk = sizes.disk_bytes,
                objects = sizes.object_bytes,
                "rewriting the object store"
            );
            Some((store.rewrite(), sizes.disk_bytes, store.sizes().disk_bytes))
        });
        match rewritten.await {
            Ok(Some((Ok(Rewritten::Done), before, after))) => {
                tracing::info!(before, after, "the object store was rewritten");
            }
            Ok(Some((Err(error), ..))) => {
                self.give_up(AlarmKind::StoreFailed, format!("rewriting the object store failed: {error}"))
                    .await;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "rewriting the object store ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_ends_with_more_room_than_it_began_with() {
        let space = |free: u64| Space { free, total: 2_000 };
        // A twentieth is the reserve: 100 bytes are kept free, and below 25 the master stops.
        assert_eq!(level(space(100), 0, false), Level::Enough);
        assert_eq!(level(space(99), 0, false), Level::Short);
        assert_eq!(level(space(105), 0, true), Level::Short);
        assert_eq!(level(space(112), 0, true), Level::Enough);
        assert_eq!(level(space(25), 0, true), Level::Short);
        assert_eq!(level(space(24), 0, false), Level::Gone);
        assert_eq!(level(space(24), 40, false), Level::Short);
    }
}
