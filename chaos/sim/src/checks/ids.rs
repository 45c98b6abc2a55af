//! Checks that a member's id is never given again, also not after the member was removed
//! (`consensus/src/types.rs`; etcd keeps removed ids for good, `IsIDRemoved` in
//! `server/etcdserver/api/membership`): a new member under an old id, with other votes and another log, would
//! be counted as the old member.

use std::collections::BTreeMap;

use chaos_spec::NodeName;
use consensus::NodeId;

/// Name of this check in reports.
pub const CHECK: &str = "ids-given-once";

/// Node to which each id was given first.
#[derive(Default)]
pub struct Ids(BTreeMap<NodeId, NodeName>);

impl Ids {
    /// Records that the master of `node` starts under `id`; returns a message if another node had this id.
    pub fn seen(&mut self, node: NodeName, id: NodeId) -> Option<String> {
        let owner = *self.0.entry(id).or_insert(node);
        (owner != node).then(|| format!("{node} starts as member {id}, which is {owner}'s id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_two_masters_is_found() {
        let [m1, m2] = [1, 2].map(|number| NodeName::master(number).unwrap());
        let mut ids = Ids::default();
        assert_eq!(ids.seen(m1, 1), None);
        assert_eq!(ids.seen(m2, 5), None);
        assert_eq!(ids.seen(m1, 1), None, "a restart");
        assert_eq!(ids.seen(m1, 9), None, "a new member on the same machine");
        assert!(ids.seen(m2, 9).is_some());
    }
}
