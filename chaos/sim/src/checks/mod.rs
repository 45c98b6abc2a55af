//! Invariants of the masters that must hold at every moment, checked from inside during the run;
//! `chaos/oracle` judges afterwards what clients saw. There is one check per file, with a test that it
//! rejects a bad history. `run.rs` samples; `observer.rs` and `inject.rs` report what they see.

pub mod allocations;
pub mod fence;
pub mod ids;
pub mod logs;
pub mod minority;
pub mod purged;
pub mod replicas;
pub mod votes;

use std::collections::BTreeSet;

use chaos_spec::NodeName;

use crate::observer::Observer;

/// Number of entries below the lowest applied index that are sampled again: a follower may have replaced
/// them.
const AGAIN: u64 = 64;

/// Checks that sample the state of running masters.
#[derive(Default)]
pub struct Sampler {
    logs: logs::Logs,
    replicas: replicas::Replicas,
    /// Masters whose replica was found to contradict itself.
    torn: BTreeSet<NodeName>,
    from: u64,
}

impl Sampler {
    /// Samples the log and the replica of every running master, and reports violations to the observer.
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
                // A master whose disk fails stops by itself.
                Err(error) => tracing::info!(%node, %error, "a log was not read"),
            }
            // What is wrong stays wrong: one message per master is enough.
            let found = allocations::check(master.store());
            if let Some(what) = found.first().filter(|_| self.torn.insert(node)) {
                observer.violation(allocations::CHECK, format!("at {node}, {} such: {what}", found.len()));
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
