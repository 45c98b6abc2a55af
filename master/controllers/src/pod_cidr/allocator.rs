//! Which parts of the pods' address range are taken, and by which nodes. Every step is logarithmic in the
//! number of nodes, so that thousands may join at once. Pure; used by `pod_cidr.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;

/// The parts of one range, by their index in it.
pub(super) struct Allocator {
    range: Ipv4Net,
    prefix: u8,
    /// Addresses of each node.
    nodes: BTreeMap<String, Vec<Ipv4Net>>,
    /// Number of nodes that have addresses of each part; parts without any are left out.
    taken: BTreeMap<u64, usize>,
    /// The free parts below `next`.
    freed: BTreeSet<u64>,
    /// Every free part that is not in `freed` has this index or a greater one.
    next: u64,
}

impl Allocator {
    /// Creates an allocator of a range's parts with a prefix of that length; all are free.
    pub fn new(range: Ipv4Net, prefix: u8) -> Self {
        Self {
            range,
            prefix,
            nodes: BTreeMap::new(),
            taken: BTreeMap::new(),
            freed: BTreeSet::new(),
            next: 0,
        }
    }

    /// Records the addresses that a node has, in place of those recorded before.
    pub fn set(&mut self, node: &str, cidrs: Vec<Ipv4Net>) {
        if self.nodes.get(node) == Some(&cidrs) {
            return;
        }
        self.release(node);
        let parts: Vec<u64> = cidrs.iter().flat_map(|cidr| self.parts_of(*cidr)).collect();
        for part in parts {
            *self.taken.entry(part).or_insert(0) += 1;
            self.freed.remove(&part);
        }
        self.nodes.insert(node.to_owned(), cidrs);
    }

    /// Returns the part of a node that has one, or takes the first free one for it; `None` when all are taken.
    pub fn assign(&mut self, node: &str) -> Option<Ipv4Net> {
        if let Some(own) = self.nodes.get(node).and_then(|own| own.first()) {
            return Some(*own);
        }
        let first = self.first_free()?;
        let cidr = self.part(first)?;
        self.set(node, vec![cidr]);
        Some(cidr)
    }

    /// Frees what a node has.
    pub fn release(&mut self, node: &str) {
        let own = self.nodes.remove(node).unwrap_or_default();
        let parts: Vec<u64> = own.into_iter().flat_map(|cidr| self.parts_of(cidr)).collect();
        for part in parts {
            let Some(count) = self.taken.get_mut(&part) else { continue };
            *count -= 1;
            if *count == 0 {
                self.taken.remove(&part);
                if part < self.next {
                    self.freed.insert(part);
                }
            }
        }
    }

    fn first_free(&mut self) -> Option<u64> {
        if let Some(freed) = self.freed.first() {
            return Some(*freed);
        }
        while self.taken.contains_key(&self.next) {
            self.next += 1;
        }
        (self.next < self.parts()).then_some(self.next)
    }

    /// Returns the number of parts.
    fn parts(&self) -> u64 {
        let bits = self.prefix.checked_sub(self.range.prefix_len());
        bits.map_or(0, |bits| 1 << bits)
    }

    fn part_size(&self) -> u64 {
        1 << (32 - self.prefix.min(32))
    }

    fn part(&self, index: u64) -> Option<Ipv4Net> {
        let address = u64::from(u32::from(self.range.network())) + index * self.part_size();
        Ipv4Net::new(Ipv4Addr::from(u32::try_from(address).ok()?), self.prefix).ok()
    }

    /// Returns the indexes of the parts with which a block of addresses overlaps.
    fn parts_of(&self, cidr: Ipv4Net) -> Range<u64> {
        let (first, last) = (u32::from(cidr.network()), u32::from(cidr.broadcast()));
        let (low, high) = (u32::from(self.range.network()), u32::from(self.range.broadcast()));
        if last < low || first > high {
            return 0..0;
        }
        let index = |address: u32| u64::from(address.clamp(low, high) - low) / self.part_size();
        index(first)..index(last) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn assign(allocator: &mut Allocator, node: &str) -> Option<String> {
        allocator.assign(node).map(|cidr| cidr.to_string())
    }

    #[test]
    fn every_node_gets_a_part_of_its_own_until_none_is_left() {
        let mut allocator = Allocator::new(net("10.42.0.0/22"), 24);
        let given: Vec<String> =
            ["a", "b", "c", "d"].iter().filter_map(|n| assign(&mut allocator, n)).collect();
        assert_eq!(given, ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]);
        assert_eq!(assign(&mut allocator, "e"), None);
        assert_eq!(
            assign(&mut allocator, "c").as_deref(),
            Some("10.42.2.0/24"),
            "whoever has a part keeps it"
        );
        allocator.release("b");
        assert_eq!(assign(&mut allocator, "e").as_deref(), Some("10.42.1.0/24"));
        assert_eq!(assign(&mut allocator, "b"), None);
    }

    #[test]
    fn what_a_node_has_of_a_part_keeps_the_whole_part_from_others() {
        let mut allocator = Allocator::new(net("10.42.0.0/21"), 24);
        allocator.set("wide", vec![net("10.42.0.0/23")]);
        allocator.set("narrow", vec![net("10.42.3.128/26"), net("192.168.0.0/24")]);
        assert_eq!(assign(&mut allocator, "a").as_deref(), Some("10.42.2.0/24"));
        assert_eq!(assign(&mut allocator, "b").as_deref(), Some("10.42.4.0/24"));
        // Two nodes with the same part: it is free only when both are gone.
        allocator.set("twin", vec![net("10.42.2.0/24")]);
        allocator.release("a");
        assert_eq!(assign(&mut allocator, "c").as_deref(), Some("10.42.5.0/24"));
        allocator.release("twin");
        assert_eq!(assign(&mut allocator, "d").as_deref(), Some("10.42.2.0/24"));
        allocator.set("wide", vec![net("10.42.1.0/24")]);
        assert_eq!(assign(&mut allocator, "e").as_deref(), Some("10.42.0.0/24"));
        allocator.set("all", vec![net("0.0.0.0/0")]);
        assert_eq!(assign(&mut allocator, "f"), None);
    }

    /// With a walk over all parts for each node this takes minutes.
    #[test]
    fn a_large_range_is_given_out_in_order_and_again_as_it_becomes_free() {
        let range = net("10.0.0.0/8");
        let mut allocator = Allocator::new(range, 24);
        let name = |i: usize| format!("node-{i}");
        let all: Vec<Ipv4Net> = range.subnets(24).unwrap().collect();
        for (i, part) in all.iter().enumerate() {
            assert_eq!(allocator.assign(&name(i)), Some(*part));
        }
        assert_eq!(allocator.assign("late"), None);
        for i in (0..all.len()).rev().filter(|i| i % 3 == 0) {
            allocator.release(&name(i));
        }
        for (i, part) in all.iter().enumerate().filter(|(i, _)| i % 3 == 0) {
            assert_eq!(allocator.assign(&format!("late-{i}")), Some(*part));
        }
        assert_eq!(allocator.assign("later"), None);
    }

    #[test]
    fn a_range_smaller_than_a_part_has_none() {
        assert_eq!(Allocator::new(net("10.0.0.0/25"), 24).assign("a"), None);
        assert_eq!(assign(&mut Allocator::new(net("0.0.0.0/0"), 0), "a").as_deref(), Some("0.0.0.0/0"));
        let mut last = Allocator::new(net("255.255.255.255/32"), 32);
        assert_eq!(assign(&mut last, "a").as_deref(), Some("255.255.255.255/32"));
        assert_eq!(assign(&mut last, "b"), None);
    }
}
