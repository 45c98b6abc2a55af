//! What must hold of the masters themselves at every moment, looked at from inside
//! while the run goes on; what clients see is judged afterwards by `chaos/oracle`.
//! One check a file, each shown to reject a bad history. `run.rs` samples,
//! `observer.rs` and `inject.rs` tell what they see.

pub mod fence;
pub mod ids;
pub mod logs;
pub mod minority;
pub mod replicas;
pub mod votes;

use crate::observer::Observer;

/// Entries below what has been looked at that are looked at again: a follower may
/// have replaced them since.
const AGAIN: u64 = 64;

/// The checks that sample.
#[derive(Default)]
pub struct Sampler {
    logs: logs::Logs,
    replicas: replicas::Replicas,
    from: u64,
}

impl Sampler {
    /// Looks into every master that runs.
    pub fn sample(&mut self, observer: &Observer) {
        let mut lowest = u64::MAX;
        for (node, master) in observer.masters() {
            let (applied, leadership) = (master.applied_index(), *master.leadership().borrow());
            match master.log_records(self.from) {
                Ok(records) => {
                    lowest = lowest.min(applied);
                    let leads = leadership.leading.then_some(leadership.term);
                    let seen = logs::Seen { node, records: &records, applied, leads };
                    for (check, what) in self.logs.see(&seen) {
                        observer.violation(check, what);
                    }
                }
                // Where a disk fails a master stops by itself.
                Err(error) => tracing::info!(%node, %error, "a log was not read"),
            }
            if let Ok(digest) = master.store().digest(None)
                && let Some(what) = self.replicas.see(node, applied, format!("{digest:?}"))
            {
                observer.violation(replicas::CHECK, what);
            }
        }
        if lowest < u64::MAX {
            self.from = lowest.saturating_sub(AGAIN);
            self.logs.forget_before(self.from);
        }
    }
}
