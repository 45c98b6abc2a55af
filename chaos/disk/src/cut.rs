//! The power cut: decides from a seed which unsynced names and bytes had reached the disk, and takes the rest
//! away. The control socket calls it through `state`.

use std::collections::BTreeMap;
use std::io;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::names::Names;

/// What a power cut took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerCut {
    /// Number of directory changes that were not synced.
    pub names_pending: u64,
    /// Number of these changes that were undone.
    pub names_lost: u64,
    /// Number of files with bytes or a length that were not synced.
    pub files_pending: u64,
    /// Number of 4 KiB blocks that were not synced.
    pub blocks_pending: u64,
    /// Number of these blocks that were restored to their old content, or torn.
    pub blocks_lost: u64,
}

/// Cuts the power: afterwards the backing directory holds what survived.
pub(crate) fn cut(names: &mut Names, seed: u64) -> io::Result<PowerCut> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut report = PowerCut { names_pending: names.changes.len() as u64, ..PowerCut::default() };
    let limits = limits(names, &mut random);
    for change in std::mem::take(&mut names.changes).into_iter().rev() {
        if change.directories().any(|directory| limits[&directory] < change.sequence) {
            report.names_lost += 1;
            names.undo(change)?;
        }
    }
    for data in names.take_unsynced() {
        let (pending, lost) = data.cut(&mut random)?;
        report.files_pending += 1;
        report.blocks_pending += pending;
        report.blocks_lost += lost;
    }
    names.start_over()?;
    Ok(report)
}

/// Draws up to which change each directory survives: all, none or a prefix of its pending changes. A change
/// of two directories survives in both or in neither.
fn limits(names: &Names, random: &mut StdRng) -> BTreeMap<u64, u64> {
    let mut pending: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for change in &names.changes {
        for directory in change.directories() {
            pending.entry(directory).or_default().push(change.sequence);
        }
    }
    let mut limits: BTreeMap<u64, u64> = BTreeMap::new();
    for (directory, sequences) in pending {
        let limit = match random.random_range(0..3) {
            0 => 0,
            1 => u64::MAX,
            _ => sequences[random.random_range(0..sequences.len())],
        };
        limits.insert(directory, limit);
    }
    loop {
        let mut lowered = false;
        for change in &names.changes {
            let lost = change.directories().any(|directory| limits[&directory] < change.sequence);
            for directory in change.directories().filter(|_| lost) {
                let limit = limits.entry(directory).or_insert(0);
                if *limit >= change.sequence {
                    *limit = change.sequence - 1;
                    lowered = true;
                }
            }
        }
        if !lowered {
            return limits;
        }
    }
}
