//! A member's id is given once and never again, also when its member was removed
//! (`consensus/src/types.rs`; etcd keeps removed ids for good, `IsIDRemoved` in
//! `server/etcdserver/api/membership`): who comes back under the id of another,
//! with other votes and another log, would be counted as that other one.

use std::collections::BTreeMap;

use chaos_spec::NodeName;
use consensus::NodeId;

/// Name of this check.
pub const CHECK: &str = "ids-given-once";

/// Whose each id is that was ever seen.
#[derive(Default)]
pub struct Ids(BTreeMap<NodeId, NodeName>);

impl Ids {
    /// A master starts under this id; says whose it was.
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
