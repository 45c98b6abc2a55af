//! A master that reaches no majority acknowledges nothing: not a write, and not a
//! read that must be current (Gilbert and Lynch 2002; Raft thesis, 6.4). Judged for
//! the calls that began and ended while the master's side of a cut was too small,
//! counted over both directions of each link. That is stricter than to wait for the
//! write to be lost.

use std::collections::{BTreeMap, BTreeSet};

use chaos_spec::NodeName;
use chaos_spec::resolve::Link;

/// Name of this check.
pub const CHECK: &str = "minority-silent";

/// Who is on a side of less than `quorum` masters while these directions are cut.
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

/// Who has been alone, and since which moment.
#[derive(Default)]
pub struct Minority {
    since: BTreeMap<NodeName, u64>,
}

impl Minority {
    /// From `now` on these are alone.
    pub fn now(&mut self, alone: &BTreeSet<NodeName>, now: u64) {
        self.since.retain(|node, _| alone.contains(node));
        for node in alone {
            self.since.entry(*node).or_insert(now);
        }
    }

    /// A call that began at `called` was acknowledged by `by`; says so where that was alone all the while.
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
        // Over m3 everybody reaches everybody.
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
