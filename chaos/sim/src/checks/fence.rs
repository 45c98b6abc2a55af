//! What leader-only components write ends with their term: once a write of a later
//! leader's is applied, none of an earlier one's is (Kleppmann, "How to do
//! distributed locking", 2016, on fencing tokens; Raft gives terms for them). Every
//! leading master keeps a journal here through fenced writes, as its controllers
//! write, and tries once more after it was deposed.

use std::sync::Arc;
use std::time::Duration;

use chaos_spec::NodeName;
use consensus::{Consensus, ProposeOptions};
use storage::{Mutation, Txn};

/// Name of this check.
pub const CHECK: &str = "deposed-writes-refused";
/// Where the journal lies: beside everything that the API shows.
pub const KEY: &str = "/chaos/journal";
/// The pause between two entries, with masters side by side.
pub const EVERY: Duration = Duration::from_millis(250);
const DEADLINE: Duration = Duration::from_secs(3);

/// A write that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// At this revision.
    pub revision: u64,
    /// The term in which its author led.
    pub term: u64,
    /// The author.
    pub node: NodeName,
}

/// Says what was written by the deposed; `journal` is in the order of revisions.
pub fn check(journal: impl IntoIterator<Item = Written>) -> Vec<String> {
    let mut found = Vec::new();
    let mut latest: Option<Written> = None;
    for written in journal {
        match latest {
            Some(latest) if written.term < latest.term => found.push(format!(
                "a write of {}, leader of term {}, was applied at {}, after {} of term {} had written at {}",
                written.node, written.term, written.revision, latest.node, latest.term, latest.revision
            )),
            _ => latest = Some(written),
        }
    }
    found
}

/// The journal's entry, and back.
pub fn encode(term: u64, node: NodeName) -> Vec<u8> {
    format!("{term} {node}").into_bytes()
}

/// None for what this file has not written.
pub fn decode(revision: u64, bytes: &[u8]) -> Option<Written> {
    let (term, node) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
    Some(Written { revision, term: term.parse().ok()?, node: node.parse().ok()? })
}

/// Writes the journal of one master, with this pause between two entries, until it ends.
pub async fn keep_journal(node: NodeName, consensus: Arc<Consensus>, pause: Duration) {
    let mut leadership = consensus.leadership();
    loop {
        let Ok(term) = leadership.wait_for(|now| now.leading).await.map(|now| now.term) else { return };
        loop {
            let now = *leadership.borrow_and_update();
            let put = Mutation::Put { key: KEY.to_owned(), value: encode(term, node).into() };
            let txn = Txn { preconditions: Vec::new(), mutations: vec![put] };
            let options = ProposeOptions { fence: Some(term), deadline: DEADLINE };
            // Whatever becomes of it: the journal says.
            let _ = consensus.propose(txn, options).await;
            if !now.leading || now.term != term {
                break;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_an_earlier_term_after_a_later_one_is_found() {
        let written =
            |revision, term, node| Written { revision, term, node: NodeName::master(node).unwrap() };
        assert!(check([written(1, 1, 1), written(2, 1, 1), written(5, 3, 2)]).is_empty());
        let found = check([written(1, 1, 1), written(3, 2, 2), written(4, 1, 1), written(5, 2, 2)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(decode(4, &encode(7, NodeName::master(2).unwrap())), Some(written(4, 7, 2)));
    }
}
