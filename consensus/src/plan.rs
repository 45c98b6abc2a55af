//! Rules for changes of the set of voters: pure functions of the leader's view, used by `membership.rs` for
//! operators' changes and by `autopilot.rs` for the leader's own. The number of voters is always odd, and a
//! majority of the next set must be running before it is entered.

use std::collections::{BTreeMap, BTreeSet};

use crate::raft_types::MasterAddress;
use crate::types::NodeId;

/// Maximum number of voters.
pub(crate) const VOTERS_MAX: usize = 7;

type Ids = BTreeSet<NodeId>;

/// The leader's view of the masters.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The voters.
    pub voters: Ids,
    /// All members.
    pub nodes: BTreeMap<NodeId, MasterAddress>,
    /// Members that have answered recently, and the leader.
    pub running: Ids,
    /// Running learners that have nearly all of the log.
    pub ready: Ids,
}

// === impl View ===

impl View {
    /// Returns a master's name and id for a message.
    pub(crate) fn called(&self, id: NodeId) -> String {
        match self.nodes.get(&id) {
            Some(info) => format!("{} (id {id})", info.name),
            None => format!("id {id}"),
        }
    }

    fn list(&self, ids: impl IntoIterator<Item = NodeId>) -> String {
        ids.into_iter().map(|id| self.called(id)).collect::<Vec<_>>().join(", ")
    }

    /// Checks that a set of voters is odd and that enough of them run; otherwise returns the reason.
    fn checked(&self, next: Ids) -> Result<Ids, String> {
        if next.len().is_multiple_of(2) {
            return Err(format!(
                "{} of {} voters would be left: an even number tolerates no more failures than one less. \
                 Add a master to take the place first, or remove two",
                next.len(),
                self.voters.len(),
            ));
        }
        if next.len() > VOTERS_MAX {
            return Err(format!("at most {VOTERS_MAX} masters vote"));
        }
        let running = next.intersection(&self.running).count();
        if running * 2 <= next.len() {
            let silent = next.difference(&self.running).copied();
            return Err(format!(
                "only {running} of the {} voters left would be running, and without a majority nothing can be \
                 written: {} must come back, or be replaced, first",
                next.len(),
                self.list(silent)
            ));
        }
        Ok(next)
    }

    /// Returns the voter that a learner joined to replace: the one it names, or a voter of the learner's
    /// own name that came back without its data.
    fn predecessor(&self, learner: NodeId) -> Option<NodeId> {
        let info = self.nodes.get(&learner)?;
        let namesake = |voter: &&NodeId| self.nodes.get(voter).is_some_and(|other| other.name == info.name);
        let named = self.voters.get(&info.replaces).copied();
        named.or_else(|| self.voters.iter().find(namesake).copied())
    }

    fn swapped(&self, old: NodeId, new: NodeId) -> Result<Ids, String> {
        let mut next = self.voters.clone();
        next.remove(&old);
        next.insert(new);
        self.checked(next)
    }
}

/// Returns the voters after ready learners become voters; `None` if none should.
pub(crate) fn promotion(view: &View) -> Option<Ids> {
    for learner in &view.ready {
        if let Some(old) = view.predecessor(*learner)
            && let Ok(next) = view.swapped(old, *learner)
        {
            return Some(next);
        }
    }
    let free: Vec<NodeId> =
        view.ready.iter().copied().filter(|learner| view.predecessor(*learner).is_none()).collect();
    if free.len() < 2 || view.voters.len() + 2 > VOTERS_MAX {
        return None;
    }
    view.checked(view.voters.iter().copied().chain(free.into_iter().take(2)).collect()).ok()
}

/// Returns the voters after `ids` become voters as an operator asked, or why they must not.
pub(crate) fn promotion_of(view: &View, ids: &Ids) -> Result<Ids, String> {
    if let Some(unknown) = ids.iter().find(|id| !view.nodes.contains_key(id)) {
        return Err(format!("there is no master with id {unknown}"));
    }
    let mut next = view.voters.clone();
    for id in ids.difference(&view.voters) {
        if !view.running.contains(id) {
            return Err(format!("{} does not answer: start it first", view.called(*id)));
        }
        if !view.ready.contains(id) {
            return Err(format!("{} has not caught up yet: wait a little", view.called(*id)));
        }
        next.insert(*id);
    }
    if next.len().is_multiple_of(2) {
        // Another ready learner makes the number odd.
        let free = view.ready.difference(&next).copied().find(|id| view.predecessor(*id).is_none());
        let Some(second) = free else {
            return Err(format!(
                "there would be {} voters: an even number tolerates no more failures than one less. Add one \
                 more master, or let this one take the place of another (`members replace`)",
                next.len()
            ));
        };
        next.insert(second);
    }
    view.checked(next)
}

/// Returns the voters after `ids` are removed, or why they must not be.
pub(crate) fn removal(view: &View, ids: &Ids) -> Result<Ids, String> {
    let mut next: Ids = view.voters.difference(ids).copied().collect();
    if next.len() == view.voters.len() {
        return Ok(next);
    }
    if next.len().is_multiple_of(2)
        && let Some(substitute) = view.ready.difference(ids).next()
    {
        next.insert(*substitute);
    }
    view.checked(next)
}

/// Returns the voters after `old` is replaced by `new` (`None`: by any ready learner), and the
/// replacement's id; or why that must not be.
pub(crate) fn replacement(view: &View, old: NodeId, new: Option<NodeId>) -> Result<(Ids, NodeId), String> {
    if !view.voters.contains(&old) {
        return Err(format!("{} does not vote: remove it instead", view.called(old)));
    }
    let new = match new {
        Some(new) if view.voters.contains(&new) => {
            return Err(format!("{} votes already", view.called(new)));
        }
        Some(new) if !view.nodes.contains_key(&new) => {
            return Err(format!("there is no master with id {new}"));
        }
        Some(new) if !view.running.contains(&new) => {
            return Err(format!("{} does not answer: start it first", view.called(new)));
        }
        Some(new) if !view.ready.contains(&new) => {
            return Err(format!("{} has not caught up yet: wait a little", view.called(new)));
        }
        Some(new) => new,
        None => {
            let free = |id: &&NodeId| view.predecessor(**id).is_none_or(|other| other == old);
            let ready = view.ready.iter().find(free).copied();
            ready.ok_or("no learner is there that has caught up: a new master has to join first")?
        }
    };
    Ok((view.swapped(old, new)?, new))
}

/// Returns the voters after a repair for voters that have been `dead` for long: one is replaced by a ready
/// learner, or two dead ones of 5 or 7 are removed. Returns `None` if nothing should be done: three voters
/// never become one, and a living voter is never removed.
pub(crate) fn repair(view: &View, dead: &Ids) -> Option<Ids> {
    let dead: Vec<NodeId> = view.voters.intersection(dead).copied().collect();
    let first = *dead.first()?;
    if let Ok((next, _)) = replacement(view, first, None) {
        return Some(next);
    }
    if dead.len() < 2 || view.voters.len() < 5 {
        return None;
    }
    let next = view.voters.iter().copied().filter(|id| !dead[..2].contains(id)).collect();
    view.checked(next).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[NodeId]) -> Ids {
        ids.iter().copied().collect()
    }

    /// Makes a view of masters named after their ids; those in `silent` do not answer.
    fn view(voters: &[NodeId], learners: &[NodeId], silent: &[NodeId]) -> View {
        let all: Ids = voters.iter().chain(learners).copied().collect();
        let running: Ids = all.difference(&ids(silent)).copied().collect();
        let info = |id: &NodeId| MasterAddress { name: format!("m{id}"), ..MasterAddress::default() };
        View {
            voters: ids(voters),
            nodes: all.iter().map(|id| (*id, info(id))).collect(),
            ready: ids(learners).intersection(&running).copied().collect(),
            running,
        }
    }

    #[test]
    fn learners_become_voters_in_pairs_up_to_seven() {
        assert_eq!(promotion(&view(&[1], &[5], &[])), None);
        assert_eq!(promotion(&view(&[1], &[5, 9, 12], &[])), Some(ids(&[1, 5, 9])));
        assert_eq!(promotion(&view(&[1, 2, 3, 4, 6, 7, 8], &[5, 9], &[])), None);
    }

    #[test]
    fn learners_that_do_not_answer_are_never_counted_on() {
        // With both as voters that do not answer, nothing could be written.
        assert_eq!(promotion(&view(&[1], &[5, 9], &[5, 9])), None);
        assert_eq!(promotion(&view(&[1], &[5, 9, 12], &[5])), Some(ids(&[1, 9, 12])));
    }

    #[test]
    fn a_master_that_lost_its_data_takes_its_own_place() {
        let mut view = view(&[1, 5, 9], &[12], &[5]);
        view.nodes.get_mut(&12).unwrap().name = "m5".into();
        assert_eq!(promotion(&view), Some(ids(&[1, 9, 12])));
    }

    #[test]
    fn a_master_that_names_the_one_it_replaces_takes_its_place_and_no_other() {
        let mut view = view(&[1, 5, 9], &[12, 13], &[5]);
        view.nodes.get_mut(&12).unwrap().replaces = 5;
        assert_eq!(promotion(&view), Some(ids(&[1, 9, 12])));
        // While the replacement catches up, it is not paired with another learner either.
        view.ready.remove(&12);
        assert_eq!(promotion(&view), None);
        // Once its predecessor was removed, it is paired like any other learner.
        view.ready.insert(12);
        view.voters.remove(&5);
        view.voters.insert(4);
        view.running.insert(4);
        assert_eq!(promotion(&view), Some(ids(&[1, 4, 9, 12, 13])));
    }

    #[test]
    fn a_removal_that_leaves_an_even_number_is_refused_with_the_reason() {
        let three = view(&[1, 2, 3], &[], &[]);
        let reason = removal(&three, &ids(&[3])).unwrap_err();
        assert!(reason.starts_with("2 of 3 voters would be left"), "{reason}");
        assert!(removal(&view(&[1], &[], &[]), &ids(&[1])).is_err());
        assert_eq!(removal(&three, &ids(&[2, 3])), Ok(ids(&[1])));
        assert_eq!(removal(&view(&[1, 2, 3], &[8], &[]), &ids(&[3])), Ok(ids(&[1, 2, 8])));
        assert_eq!(removal(&view(&[1, 2, 3], &[8], &[]), &ids(&[8])), Ok(ids(&[1, 2, 3])));
    }

    #[test]
    fn a_removal_that_leaves_no_majority_running_is_refused_with_the_reason() {
        let reason = removal(&view(&[1, 2, 3, 4, 5], &[], &[4, 5]), &ids(&[2, 3])).unwrap_err();
        assert!(reason.starts_with("only 1 of the 3 voters left would be running"), "{reason}");
        assert!(reason.contains("m4 (id 4), m5 (id 5)"), "{reason}");
        // Voters that do not answer may be removed.
        assert_eq!(removal(&view(&[1, 2, 3, 4, 5], &[], &[4, 5]), &ids(&[4, 5])), Ok(ids(&[1, 2, 3])));
    }

    #[test]
    fn a_promotion_says_what_is_in_its_way() {
        let reason = promotion_of(&view(&[1, 2, 3], &[8], &[]), &ids(&[8])).unwrap_err();
        assert!(reason.starts_with("there would be 4 voters"), "{reason}");
        let reason = promotion_of(&view(&[1], &[5, 9], &[9]), &ids(&[5, 9])).unwrap_err();
        assert!(reason.contains("m9 (id 9) does not answer"), "{reason}");
        let mut behind = view(&[1], &[5, 9], &[]);
        behind.ready.remove(&5);
        let reason = promotion_of(&behind, &ids(&[5, 9])).unwrap_err();
        assert!(reason.contains("m5 (id 5) has not caught up"), "{reason}");
        // The second learner is chosen automatically.
        assert_eq!(promotion_of(&view(&[1], &[5, 9], &[]), &ids(&[9])), Ok(ids(&[1, 5, 9])));
        assert!(promotion_of(&view(&[1], &[5, 9], &[]), &ids(&[7])).unwrap_err().contains("id 7"));
    }

    #[test]
    fn a_replacement_is_one_swap() {
        let view = view(&[1, 2, 3], &[8], &[2]);
        assert_eq!(replacement(&view, 2, None), Ok((ids(&[1, 3, 8]), 8)));
        assert_eq!(replacement(&view, 2, Some(8)), Ok((ids(&[1, 3, 8]), 8)));
        assert!(replacement(&view, 2, Some(3)).unwrap_err().contains("votes already"));
        assert!(replacement(&view, 8, None).unwrap_err().contains("does not vote"));
    }

    #[test]
    fn a_repair_swaps_or_takes_two_dead_ones_and_nothing_else() {
        // A ready learner replaces the dead voter.
        assert_eq!(repair(&view(&[1, 2, 3], &[8], &[3]), &ids(&[3])), Some(ids(&[1, 2, 8])));
        // Without a learner, three voters stay three.
        assert_eq!(repair(&view(&[1, 2, 3], &[], &[3]), &ids(&[3])), None);
        assert_eq!(repair(&view(&[1, 2, 3], &[], &[2, 3]), &ids(&[2, 3])), None);
        // Two dead of five or seven are removed together. A single dead one stays, because a living voter
        // would have to go too.
        let five = [1, 2, 3, 4, 5];
        assert_eq!(repair(&view(&five, &[], &[5]), &ids(&[5])), None);
        assert_eq!(repair(&view(&five, &[], &[4, 5]), &ids(&[4, 5])), Some(ids(&[1, 2, 3])));
        let seven = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(repair(&view(&seven, &[], &[5, 6, 7]), &ids(&[5, 6, 7])), Some(ids(&[1, 2, 3, 4, 7])));
        // Silent, but not long enough.
        assert_eq!(repair(&view(&five, &[], &[4, 5]), &ids(&[5])), None);
        // Nobody is dead.
        assert_eq!(repair(&view(&five, &[8], &[]), &ids(&[])), None);
        // The dead master is not a voter any more.
        assert_eq!(repair(&view(&[1, 2, 3], &[8], &[9]), &ids(&[9])), None);
    }
}
