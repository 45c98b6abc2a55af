//! Checks that a master still knows its last vote after a restart (Raft, 2014, figure 2: currentTerm and
//! votedFor are updated on stable storage before responding). A master that forgets its vote may vote twice
//! in a term.

use std::collections::BTreeMap;

use chaos_spec::NodeName;
use consensus::VoteSeen;

/// Name of this check in reports.
pub const CHECK: &str = "votes-kept";

/// Last vote that each master had saved when it was last sampled, with the master's id.
#[derive(Default)]
pub struct Votes {
    last: BTreeMap<NodeName, (u64, VoteSeen)>,
}

impl Votes {
    /// Records the vote of the master of `node`, whose id is `id`.
    pub fn seen(&mut self, node: NodeName, id: u64, vote: VoteSeen) {
        self.last.insert(node, (id, vote));
    }

    /// Returns a message if a master that has started again knows an older vote than the one recorded.
    pub fn started(&self, node: NodeName, id: u64, vote: Option<VoteSeen>) -> Option<String> {
        let (known, last) = self.last.get(&node)?;
        let vote = vote.unwrap_or(VoteSeen { term: 0, candidate: 0 });
        // Nobody votes in term 0: openraft starts there with a vote for itself that it does not save.
        let kept = last.term == 0
            || vote.term > last.term
            || (vote.term == last.term && vote.candidate == last.candidate);
        (*known == id && !kept).then(|| {
            format!(
                "{node} had voted for {} in term {}, and knows {} in term {} after its restart",
                last.candidate, last.term, vote.candidate, vote.term
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_that_goes_back_or_turns_is_found() {
        let m1 = NodeName::master(1).unwrap();
        let vote = |term, candidate| Some(VoteSeen { term, candidate });
        let mut votes = Votes::default();
        assert_eq!(votes.started(m1, 1, vote(1, 1)), None);
        votes.seen(m1, 1, VoteSeen { term: 3, candidate: 2 });
        assert_eq!(votes.started(m1, 1, vote(3, 2)), None);
        assert_eq!(votes.started(m1, 1, vote(4, 1)), None);
        assert!(votes.started(m1, 1, vote(2, 2)).is_some());
        assert!(votes.started(m1, 1, vote(3, 1)).is_some());
        assert!(votes.started(m1, 1, None).is_some());
        votes.seen(m1, 1, VoteSeen { term: 0, candidate: 1 });
        assert_eq!(votes.started(m1, 1, None), None);
        // A new member on the same machine has never voted.
        assert_eq!(votes.started(m1, 9, vote(0, 0)), None);
    }
}
