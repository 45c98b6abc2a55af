//! Checks that replicas that have applied the same part of the log hold the same bytes (as TigerBeetle's
//! storage checker and etcd's corruption check do).

use std::collections::BTreeMap;

use chaos_spec::NodeName;

/// Name of this check in reports.
pub const CHECK: &str = "replicas-identical";
/// Number of applied indexes whose digests are remembered.
const KEPT: usize = 1024;

/// Digest first seen at each applied index, with the replica it came from.
#[derive(Default)]
pub struct Replicas {
    known: BTreeMap<u64, (NodeName, String)>,
}

impl Replicas {
    /// Records a replica's digest at applied index `index`; returns a message if another replica's differs.
    pub fn see(&mut self, node: NodeName, index: u64, digest: String) -> Option<String> {
        let (other, known) = self.known.entry(index).or_insert_with(|| (node, digest.clone()));
        let what = (*known != digest)
            .then(|| format!("with entry {index} applied {node} has {digest}, {other} {known}"));
        if self.known.len() > KEPT {
            self.known.pop_first();
        }
        what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_index_with_other_bytes_is_found() {
        let m = |number| NodeName::master(number).unwrap();
        let mut replicas = Replicas::default();
        assert_eq!(replicas.see(m(1), 7, "a".into()), None);
        assert_eq!(replicas.see(m(2), 7, "a".into()), None);
        assert_eq!(replicas.see(m(2), 8, "b".into()), None);
        assert!(replicas.see(m(3), 8, "c".into()).unwrap().contains("with entry 8 applied m3 has c, m2 b"));
    }
}
