//! The oracle: judges the history of a finished run, simulated or live. The runner calls `check` once all
//! faults are undone and the final state has been read; the result is empty, or tells which guarantee was
//! broken and by which operations.
//!
//! There is one check per file, each a pure function of the history. Two of them judge the same guarantee by
//! different means: `linearizable.rs` searches without using the truth, `order.rs` follows the truth without
//! searching.

mod index;
mod matching;
mod search;
mod semantics;

pub mod bounds;
pub mod calls;
pub mod figures;
pub mod finals;
pub mod history;
pub mod http;
pub mod kind;
pub mod linearizable;
pub mod lists;
pub mod lost;
pub mod malformed;
pub mod memory;
pub mod order;
pub mod phantom;
pub mod stream;
pub mod watches;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::history::History;

/// A guarantee that a history breaks, or that could not be decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{check}: {what}")]
pub struct Violation {
    /// Name of the check that found it (the `CHECK` of its file), or `linearizable::UNDECIDED`.
    pub check: &'static str,
    /// Description in one to three lines that name the operations involved.
    pub what: String,
}

impl Violation {
    /// Returns whether the check gave up: it proved neither a violation nor its absence. A run with such a
    /// result has not passed.
    pub fn is_undecided(&self) -> bool {
        self.check == linearizable::UNDECIDED
    }
}

/// Runs every check, cheapest and most telling first.
pub fn check(history: &History) -> Vec<Violation> {
    let checks = [
        malformed::check,
        lost::check,
        finals::check,
        phantom::check,
        order::check,
        lists::check,
        watches::check,
        linearizable::check,
    ];
    checks.iter().flat_map(|check| check(history)).collect()
}
