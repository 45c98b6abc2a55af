//! Checks Log Matching, Leader Completeness and State Machine Safety, the properties of figure 3 of Raft
//! (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014):
//!
//! - two entries with the same index and term say the same, and so do all before
//!   them: it is enough that each pair also agrees on the term of its predecessor;
//! - an entry that was committed is in the log of every leader of a later term;
//! - no two masters apply different entries at one index.

use std::collections::BTreeMap;

use chaos_spec::NodeName;
use consensus::LogRecord;

/// Name of the Log Matching check in reports.
pub const MATCHING: &str = "log-matching";
/// Name of the Leader Completeness check in reports.
pub const COMPLETENESS: &str = "leader-completeness";
/// Name of the State Machine Safety check in reports.
pub const SAFETY: &str = "state-machine-safety";

/// One master's log at one moment.
pub struct Seen<'a> {
    /// The master.
    pub node: NodeName,
    /// Entries of its log, contiguous, from some index on.
    pub records: &'a [LogRecord],
    /// Last index that the master has applied.
    pub applied: u64,
    /// Term that the master leads; `None` if it does not lead.
    pub leads: Option<u64>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    hash: blake3::Hash,
    /// Term of the preceding entry; `None` if that entry was not seen.
    before: Option<u64>,
}

/// Entries seen so far in the logs of all masters.
#[derive(Default)]
pub struct Logs {
    /// Entries by index and term, each with the master where it was seen first.
    entries: BTreeMap<(u64, u64), (NodeName, Entry)>,
    /// For each applied index: the master that was seen first to have applied it, and the term of its entry.
    applied: BTreeMap<u64, (NodeName, u64)>,
}

impl Logs {
    /// Records a log; returns the name of each violated check with a message.
    pub fn see(&mut self, seen: &Seen<'_>) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut before = None;
        for record in seen.records {
            let entry = Entry { hash: blake3::hash(&record.bytes), before };
            self.matching(seen.node, record, entry, &mut found);
            if record.index <= seen.applied {
                self.safety(seen.node, record, &mut found);
            }
            before = Some(record.term);
        }
        if let Some(term) = seen.leads {
            self.completeness(seen, term, &mut found);
        }
        found
    }

    fn matching(
        &mut self,
        node: NodeName,
        record: &LogRecord,
        entry: Entry,
        found: &mut Vec<(&'static str, String)>,
    ) {
        let place = (record.index, record.term);
        let (other, known) = self.entries.entry(place).or_insert_with(|| (node, entry.clone()));
        let same = known.hash == entry.hash && (known.before == entry.before || entry.before.is_none());
        if known.before.is_none() {
            known.before = entry.before;
        } else if !same {
            let (index, term) = place;
            let what = format!(
                "entry {index} of term {term} differs between {node} (after term {:?}) and {other} (after term \
                 {:?})",
                entry.before, known.before
            );
            return found.push((MATCHING, what));
        }
        if known.hash != entry.hash {
            let what =
                format!("entry {} of term {} of {node} says another thing than {other}'s", place.0, place.1);
            found.push((MATCHING, what));
        }
    }

    fn safety(&mut self, node: NodeName, record: &LogRecord, found: &mut Vec<(&'static str, String)>) {
        let (other, term) = *self.applied.entry(record.index).or_insert((node, record.term));
        if term != record.term {
            let what = format!(
                "{node} applied entry {} of term {}, {other} the one of term {term}",
                record.index, record.term
            );
            found.push((SAFETY, what));
        }
    }

    /// Checks that a leader's log has all committed entries of earlier terms; those of its own term it wrote
    /// itself.
    fn completeness(&self, seen: &Seen<'_>, leads: u64, found: &mut Vec<(&'static str, String)>) {
        let Some(first) = seen.records.first().map(|record| record.index) else { return };
        let has: BTreeMap<u64, u64> = seen.records.iter().map(|record| (record.index, record.term)).collect();
        for (index, (by, term)) in self.applied.range(first..) {
            if *term < leads && has.get(index) != Some(term) {
                let what = format!(
                    "{} leads term {leads} without entry {index} of term {term}, which {by} had applied",
                    seen.node
                );
                found.push((COMPLETENESS, what));
            }
        }
    }

    /// Forgets entries below `index`, which are not compared again.
    pub fn forget_before(&mut self, index: u64) {
        self.entries = self.entries.split_off(&(index, 0));
        self.applied = self.applied.split_off(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(number: u32) -> NodeName {
        NodeName::master(number).unwrap()
    }

    /// Builds log records from index 1 on, each given as its term and its content.
    fn records(entries: &[(u64, &'static str)]) -> Vec<LogRecord> {
        let record = |(at, (term, says)): (usize, &(u64, &'static str))| LogRecord {
            index: at as u64 + 1,
            term: *term,
            bytes: says.as_bytes().into(),
        };
        entries.iter().enumerate().map(record).collect()
    }

    /// A node, its log as (term, content) pairs, the last index it has applied, and the term it leads.
    type Member<'a> = (u32, &'a [(u64, &'static str)], u64, Option<u64>);

    fn checks(logs: &[Member<'_>]) -> Vec<&'static str> {
        let mut all = Logs::default();
        let found = logs.iter().flat_map(|(node, entries, applied, leads)| {
            let records = records(entries);
            all.see(&Seen { node: m(*node), records: &records, applied: *applied, leads: *leads })
        });
        found.map(|(check, _)| check).collect()
    }

    #[test]
    fn logs_that_agree_on_what_is_committed_are_fine() {
        let long: &[_] = &[(1, "a"), (1, "b"), (2, "c")];
        assert!(checks(&[(1, long, 3, Some(2)), (2, &long[..2], 2, None)]).is_empty());
        // An entry that was never committed may be replaced.
        let replaced: &[_] = &[(1, "a"), (3, "d")];
        assert!(checks(&[(1, &long[..2], 1, Some(1)), (2, replaced, 2, Some(3))]).is_empty());
    }

    #[test]
    fn one_place_says_one_thing() {
        assert_eq!(checks(&[(1, &[(1, "a")], 0, None), (2, &[(1, "x")], 0, None)]), [MATCHING]);
        // The entry at index 2 is the same in both logs, but the entries before it differ.
        let logs: &[Member<'_>] = &[(1, &[(1, "a"), (3, "c")], 0, None), (2, &[(2, "b"), (3, "c")], 0, None)];
        assert_eq!(checks(logs), [MATCHING]);
    }

    #[test]
    fn a_leader_without_what_was_committed_is_found() {
        let found = checks(&[(1, &[(1, "a"), (1, "b")], 2, None), (2, &[(1, "a")], 1, Some(2))]);
        assert_eq!(found, [COMPLETENESS]);
        // An entry that no master has applied does not count as committed.
        assert!(checks(&[(1, &[(1, "a"), (1, "b")], 1, None), (2, &[(1, "a")], 1, Some(2))]).is_empty());
    }

    #[test]
    fn two_entries_applied_at_one_index_are_found() {
        let found = checks(&[(1, &[(1, "a"), (1, "b")], 2, None), (2, &[(1, "a"), (2, "c")], 2, None)]);
        assert_eq!(found, [SAFETY]);
    }
}
