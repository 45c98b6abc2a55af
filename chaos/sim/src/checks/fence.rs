//! Checks that writes of leader-only components end with their term: once a later leader's write is applied,
//! no earlier leader's write is (Kleppmann, "How to do distributed locking", 2016, on fencing tokens; Raft's
//! terms are such tokens). Every leading master writes a journal for this check, by fenced writes like those
//! of its controllers, and tries one more write after it was deposed.

use std::sync::Arc;
use std::time::Duration;

use chaos_spec::NodeName;
use consensus::{Consensus, ProposeOptions};
use storage::{Mutation, Txn};

/// Name of this check in reports.
pub const CHECK: &str = "deposed-writes-refused";
/// Store key of the journal, outside the prefix that the API shows.
pub const KEY: &str = "/chaos/journal";
/// Time between two journal entries of one master when masters are near each other.
pub const EVERY: Duration = Duration::from_millis(250);
const DEADLINE: Duration = Duration::from_secs(3);

/// A journal entry that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Revision at which the entry was applied.
    pub revision: u64,
    /// Term in which the author led.
    pub term: u64,
    /// Master that wrote the entry.
    pub node: NodeName,
}

/// Finds entries that a deposed leader wrote after a later leader had written; `journal` is ordered by
/// revision.
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

/// Encodes a journal entry; [`decode`] reads it back.
pub fn encode(term: u64, node: NodeName) -> Vec<u8> {
    format!("{term} {node}").into_bytes()
}

/// Decodes a journal entry; `None` if [`encode`] did not write these bytes.
pub fn decode(revision: u64, bytes: &[u8]) -> Option<Written> {
    let (term, node) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
    Some(Written { revision, term: term.parse().ok()?, node: node.parse().ok()? })
}

/// Writes journal entries for one master, `pause` apart, until the future is dropped.
pub async fn keep_journal(node: NodeName, consensus: Arc<Consensus>, pause: Duration) {
    let mut leadership = consensus.leadership();
    loop {
        let Ok(term) = leadership.wait_for(|now| now.leading).await.map(|now| now.term) else { return };
        loop {
            let now = *leadership.borrow_and_update();
            let put = Mutation::Put { key: KEY.to_owned(), value: encode(term, node).into() };
            let txn = Txn { preconditions: Vec::new(), mutations: vec![put] };
            let options = ProposeOptions { fence: Some(term), deadline: DEADLINE };
            // The result is ignored: the check judges the journal itself.
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
