//! Checks that a master that reaches no majority acknowledges no write and no linearizable read (Gilbert and
//! Lynch 2002; Raft thesis, 6.4). It judges the calls that began and ended while the master's side of a cut
//! was smaller than a majority; a link counts only if both directions work. That is stricter than to wait
//! until a write is lost.

use std::collections::{BTreeMap, BTreeSet};

use chaos_spec::NodeName;
use chaos_spec::resolve::Link;

/// Name of this check in reports.
pub const CHECK: &str = "minority-silent";

/// Returns the masters on a side with fewer than `quorum` masters while these directions are cut.
pub fn isolated(masters: &BTreeSet<NodeName>, cuts: &BTreeSet<Link>, quorum: usize) -> BTreeSet<NodeName> {
    let linked = |a: NodeName, b: NodeName| !cuts.contains(&(a, b)) && !cuts.contains(&(b, a));
    let mut alone = BTreeSet::new();
    for master in masters {
        let mut side = BTreeSet::from([*master]);
        let mut next = vec![*master];
        while let Some(at) = next.pop() {
            let found = masters.iter().filter(|other| linked(at, **other));
            next.extend(found.filter(|other| side.insert(**other)));
        }
        if side.len() < quorum {
            alone.insert(*master);
        }
    }
    alone
}

/// Masters that reach no majority, each with the moment since which that is so.
#[derive(Default)]
pub struct Minority {
    since: BTreeMap<NodeName, u64>,
}

impl Minority {
    /// Sets which masters reach no majority from `now` on.
    pub fn now(&mut self, alone: &BTreeSet<NodeName>, now: u64) {
        self.since.retain(|node, _| alone.contains(node));
        for node in alone {
            self.since.entry(*node).or_insert(now);
        }
    }

    /// Returns a message if `by` acknowledged a call begun at `called` while it reached no majority all the
    /// time.
    pub fn acknowledged(&self, by: NodeName, called: u64) -> Option<String> {
        let since = self.since.get(&by).filter(|since| **since < called)?;
        Some(format!("{by} has reached no majority since {since}ns, and acknowledged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(number: u32) -> NodeName {
        NodeName::master(number).unwrap()
    }

    #[test]
    fn a_side_is_counted_over_whole_links() {
        let masters: BTreeSet<_> = (1..=5).map(m).collect();
        let between = |side: &[u32], rest: &[u32]| -> BTreeSet<Link> {
            side.iter().flat_map(|a| rest.iter().map(|b| (m(*a), m(*b)))).collect()
        };
        let cut = between(&[1, 2], &[3, 4, 5]);
        assert_eq!(isolated(&masters, &cut, 3), BTreeSet::from([m(1), m(2)]));
        // All masters are still linked through m3.
        assert!(isolated(&masters, &between(&[1, 2], &[4, 5]), 3).is_empty());
    }

    #[test]
    fn an_answer_of_who_was_alone_all_the_while_is_found() {
        let mut minority = Minority::default();
        minority.now(&BTreeSet::from([m(1)]), 100);
        assert_eq!(minority.acknowledged(m(1), 90), None);
        assert_eq!(minority.acknowledged(m(2), 110), None);
        assert!(minority.acknowledged(m(1), 110).is_some());
        minority.now(&BTreeSet::new(), 200);
        assert_eq!(minority.acknowledged(m(1), 210), None);
    }
}
