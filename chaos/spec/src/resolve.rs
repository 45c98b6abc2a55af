//! Resolves which nodes a fault strikes, the same in the simulation and on a live cluster: a target's words
//! and a cut's shapes are looked up in the group of masters at the time the fault fires. Both runners call
//! it.

use crate::fault::{Cut, Shape};
use crate::target::{NodeName, Role, Target};

/// A group of masters at one moment. All random choices come from the order in which the masters are given,
/// so that the words of one fault fit together: `minority` and `majority` are the two parts of one whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// All masters, in random order.
    order: Vec<NodeName>,
    leader: Option<NodeName>,
}

/// A direction of a link: sender and receiver.
pub type Link = (NodeName, NodeName);

impl Group {
    /// Creates the group whose masters were shuffled to `order`.
    pub fn new(order: Vec<NodeName>, leader: Option<NodeName>) -> Self {
        Self { order, leader }
    }

    /// Returns the masters that a target means; empty if it needs a leader and there is none, or if the named
    /// nodes are no masters of this group.
    pub fn nodes(&self, target: &Target) -> Vec<NodeName> {
        let few = self.order.len().saturating_sub(1) / 2;
        match target {
            Target::Leader => self.leader.into_iter().collect(),
            Target::Follower => self.others().take(1).collect(),
            Target::Any => self.order.iter().take(1).copied().collect(),
            Target::All => self.order.clone(),
            Target::Minority => self.order[..few].to_vec(),
            Target::Majority => self.order[few..].to_vec(),
            Target::Nodes(nodes) => {
                let masters = nodes.iter().filter(|node| node.role() == Role::Master);
                masters.filter(|node| self.order.contains(node)).copied().collect()
            }
        }
    }

    /// Returns the directions between two targets, without those from a node to itself.
    pub fn links(&self, from: &Target, to: &Target, one_way: bool) -> Vec<Link> {
        let mut links = across(&self.nodes(from), &self.nodes(to));
        if !one_way {
            links.extend(across(&self.nodes(to), &self.nodes(from)));
        }
        links.sort_unstable();
        links.dedup();
        links
    }

    /// Returns the directions that a cut blocks.
    pub fn cut(&self, cut: &Cut) -> Vec<Link> {
        let shape = match cut {
            Cut::Links { from, to, one_way } => return self.links(from, to, *one_way),
            Cut::Shape(shape) => shape,
        };
        // The shapes other than the ring need a leader.
        let Some(leader) = self.leader.filter(|_| *shape != Shape::Ring) else {
            return if *shape == Shape::Ring { self.ring() } else { Vec::new() };
        };
        let few = self.order.len().saturating_sub(1) / 2;
        let beside = match shape {
            Shape::LeaderAlone => 0,
            Shape::Minority => few.saturating_sub(1),
            Shape::Majority | Shape::Ring => self.order.len().saturating_sub(few + 1),
        };
        let mut side: Vec<NodeName> = self.others().take(beside).collect();
        side.push(leader);
        let rest: Vec<NodeName> = self.order.iter().filter(|node| !side.contains(node)).copied().collect();
        let mut links = across(&side, &rest);
        links.extend(across(&rest, &side));
        links.sort_unstable();
        links
    }

    fn others(&self) -> impl Iterator<Item = NodeName> + '_ {
        self.order.iter().filter(|node| Some(**node) != self.leader).copied()
    }

    /// Returns the directions that a ring cuts: each master still reaches the bare majority around it, each a
    /// different one.
    fn ring(&self) -> Vec<Link> {
        let count = self.order.len();
        let beside = count / 2;
        let (before, after) = (beside / 2, beside - beside / 2);
        let mut links = Vec::new();
        for (at, hearer) in self.order.iter().enumerate() {
            for (position, speaker) in self.order.iter().enumerate() {
                let ahead = (position + count - at) % count;
                if ahead > after && ahead < count - before {
                    links.push((*speaker, *hearer));
                }
            }
        }
        links.sort_unstable();
        links
    }
}

fn across(from: &[NodeName], to: &[NodeName]) -> Vec<Link> {
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b)));
    pairs.filter(|(a, b)| a != b).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn m(number: u32) -> NodeName {
        NodeName::master(number).unwrap()
    }

    fn group(order: &[u32], leader: Option<u32>) -> Group {
        Group::new(order.iter().map(|number| m(*number)).collect(), leader.map(m))
    }

    #[test]
    fn words_mean_who_is_there_now() {
        let group = group(&[3, 1, 5, 2, 4], Some(3));
        assert_eq!(group.nodes(&Target::Leader), [m(3)]);
        assert_eq!(group.nodes(&Target::Follower), [m(1)]);
        assert_eq!(group.nodes(&Target::Any), [m(3)]);
        assert_eq!(group.nodes(&Target::Minority), [m(3), m(1)]);
        assert_eq!(group.nodes(&Target::Majority), [m(5), m(2), m(4)]);
        assert_eq!(group.nodes(&Target::node(m(7))), []);
    }

    #[test]
    fn without_a_leader_the_leader_is_nobody() {
        let group = group(&[1, 2, 3], None);
        assert_eq!(group.nodes(&Target::Leader), []);
        assert_eq!(group.cut(&Cut::Shape(Shape::LeaderAlone)), []);
    }

    #[test]
    fn one_way_is_one_direction() {
        let group = group(&[1, 2, 3], Some(2));
        let links = |one_way| group.links(&Target::All, &Target::Leader, one_way);
        assert_eq!(links(true), [(m(1), m(2)), (m(3), m(2))]);
        assert_eq!(links(false), [(m(1), m(2)), (m(2), m(1)), (m(2), m(3)), (m(3), m(2))]);
    }

    /// Returns the masters that each master still hears.
    fn heard(group: &Group, cut: &Cut) -> Vec<BTreeSet<NodeName>> {
        let links = group.cut(cut);
        let hears = |a: &NodeName, b: &NodeName| !links.contains(&(*b, *a));
        let heard = |a: &NodeName| group.order.iter().filter(|b| hears(a, b)).copied().collect();
        group.order.iter().map(heard).collect()
    }

    #[test]
    fn in_a_ring_all_hear_a_bare_majority_and_no_two_the_same() {
        for count in [5_u32, 7] {
            let group = group(&(1..=count).collect::<Vec<_>>(), Some(1));
            let heard = heard(&group, &Cut::Shape(Shape::Ring));
            assert!(heard.iter().all(|set| set.len() as u32 == count / 2 + 1), "{heard:?}");
            assert_eq!(heard.iter().collect::<BTreeSet<_>>().len() as u32, count);
        }
    }

    #[test]
    fn minority_and_majority_say_where_the_leader_is() {
        let group = group(&[1, 2, 3, 4, 5], Some(4));
        let of_leader = |shape| heard(&group, &Cut::Shape(shape))[3].len();
        assert_eq!(of_leader(Shape::LeaderAlone), 1);
        assert_eq!(of_leader(Shape::Minority), 2);
        assert_eq!(of_leader(Shape::Majority), 3);
    }
}
