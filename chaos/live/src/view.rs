//! What the masters say of themselves and of each other when polled: who leads which term, who is a member,
//! which revision each has reached. `observer` keeps it. Also checks an invariant as far as it can be seen
//! from outside: at most one leader a term (Raft, section 5.2).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chaos_oracle::Violation;
use proto_wire::cluster::Member;

/// Maximum age of an answer that still counts as current.
const FRESH: Duration = Duration::from_millis(1500);

/// A master that led a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Moment since which the master was seen to lead.
    pub since: Duration,
    /// The term.
    pub term: u64,
    /// Id of the master.
    pub master: u64,
}

/// Last answer of a master.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Moment of the answer.
    pub at: Duration,
    /// Term of the master.
    pub term: u64,
    /// Whether the master considers itself leader.
    pub leads: bool,
    /// Id of the master that it considers leader; `None` if it knows none.
    pub leader: Option<u64>,
    /// All members, as the master knows them.
    pub members: Vec<Member>,
    /// Revision of the master's store.
    pub revision: u64,
}

/// Last answers of all masters.
#[derive(Debug, Default)]
pub struct Views {
    latest: BTreeMap<u64, View>,
    /// Moment and revision of each master's previous answer.
    earlier: BTreeMap<u64, (Duration, u64)>,
    leaders: BTreeMap<u64, Leader>,
    terms: Vec<(Duration, u64)>,
    violations: Vec<Violation>,
}

impl Views {
    /// Adds an answer of master `id`.
    pub fn add(&mut self, id: u64, view: View) {
        if self.terms.last().is_none_or(|(_, term)| *term < view.term) {
            self.terms.push((view.at, view.term));
        }
        if let Some(before) = self.latest.get(&id) {
            self.earlier.insert(id, (before.at, before.revision));
            // Counts only if two answers in a row say so: one may have been composed while the term changed.
            if view.leads && before.leads && before.term == view.term {
                let claim = Leader { since: before.at, term: view.term, master: id };
                let known = *self.leaders.entry(view.term).or_insert(claim);
                if known.master != id {
                    let what = format!("masters {} and {id} both lead term {}", known.master, view.term);
                    self.violations.push(Violation { check: "one-leader-per-term", what });
                }
            }
        }
        self.latest.insert(id, view);
    }

    /// Returns the master that now considers itself leader; of several the one with the highest term.
    pub fn leader(&self, now: Duration) -> Option<u64> {
        let leading = self.fresh(now).filter(|(_, view)| view.leads);
        leading.max_by_key(|(_, view)| view.term).map(|(id, _)| id)
    }

    /// Returns the members as the leader knows them; without a leader, as the latest answer has them.
    pub fn members(&self, now: Duration) -> Vec<Member> {
        let leader = self.leader(now).and_then(|id| self.latest.get(&id));
        let latest = || self.latest.values().max_by_key(|view| view.at);
        leader.or_else(latest).map(|view| view.members.clone()).unwrap_or_default()
    }

    /// Returns whether every master of `expected` (by name) answers, follows one leader, and is a member that
    /// all others know, an odd number of them vote, and all have caught up.
    pub fn is_whole(&self, expected: &BTreeSet<String>, now: Duration) -> bool {
        let Some(leader) = self.leader(now) else { return false };
        let Some(of_leader) = self.latest.get(&leader) else { return false };
        let known = |members: &[Member]| -> BTreeSet<(u64, bool)> {
            members.iter().map(|member| (member.id, member.voter)).collect()
        };
        let names: BTreeSet<String> = of_leader.members.iter().map(|member| member.name.clone()).collect();
        let voters = of_leader.members.iter().filter(|member| member.voter).count();
        let (then, revision) = self.earlier.get(&leader).copied().unwrap_or_default();
        let fit = |member: &Member| {
            self.fresh(now).find(|(id, _)| *id == member.id).is_some_and(|(_, view)| {
                view.leader == Some(leader)
                    && view.term == of_leader.term
                    && known(&view.members) == known(&of_leader.members)
                    && (view.at < then || view.revision >= revision)
            })
        };
        let odd = (expected.len().max(1) - 1) / 2 * 2 + 1;
        names == *expected && voters == odd && of_leader.members.iter().all(fit)
    }

    /// Returns the leaders in the order of their terms.
    pub fn leaders(&self) -> Vec<Leader> {
        self.leaders.values().copied().collect()
    }

    /// Returns when each term was first seen, in order.
    pub fn terms(&self) -> &[(Duration, u64)] {
        &self.terms
    }

    /// Takes the violations found so far.
    pub fn violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Describes the masters' answers in words, for messages about a cluster that is not whole.
    pub fn words(&self, now: Duration) -> String {
        let word = |(id, view): (&u64, &View)| {
            let age = now.saturating_sub(view.at);
            let follows = view.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
            let members: Vec<String> = view
                .members
                .iter()
                .map(|member| format!("{}{}", member.name, if member.voter { "" } else { "?" }))
                .collect();
            format!(
                "master {id} ({:.1}s ago): term {}, follows {follows}, revision {}, members {}",
                age.as_secs_f64(),
                view.term,
                view.revision,
                members.join(" ")
            )
        };
        self.latest.iter().map(word).collect::<Vec<_>>().join("; ")
    }

    fn fresh(&self, now: Duration) -> impl Iterator<Item = (u64, &View)> {
        let fresh = move |view: &View| now.saturating_sub(view.at) <= FRESH;
        self.latest.iter().filter(move |(_, view)| fresh(view)).map(|(id, view)| (*id, view))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn view(at: u64, term: u64, leader: u64, leads: bool) -> View {
        let member = |id: u64| Member { id, name: format!("m{id}"), voter: true, ..Member::default() };
        let members = [1, 2, 3].map(member).to_vec();
        View { at: ms(at), term, leads, leader: Some(leader), members, revision: at }
    }

    fn whole(views: &Views, now: u64) -> bool {
        let expected = ["m1", "m2", "m3"].map(str::to_owned).into();
        views.is_whole(&expected, ms(now))
    }

    #[test]
    fn the_cluster_is_whole_when_all_follow_one_leader() {
        let mut views = Views::default();
        for at in [10, 60] {
            views.add(1, view(at, 3, 1, true));
            views.add(2, view(at, 3, 1, false));
        }
        assert!(!whole(&views, 60), "one is missing");
        views.add(3, view(60, 3, 1, false));
        assert!(whole(&views, 60));
        assert!(!whole(&views, 5000), "that was long ago");
        views.add(3, View { revision: 2, ..view(70, 3, 1, false) });
        assert!(!whole(&views, 70), "one is behind");
        views.add(3, view(80, 4, 1, false));
        assert!(!whole(&views, 80), "one is in another term");
    }

    #[test]
    fn two_leaders_of_one_term_are_seen_and_of_two_terms_are_not() {
        let mut views = Views::default();
        [10, 20].into_iter().for_each(|at| views.add(1, view(at, 3, 1, true)));
        [10, 20].into_iter().for_each(|at| views.add(2, view(at, 4, 2, true)));
        assert_eq!(views.violations(), []);
        assert_eq!(views.leader(ms(20)), Some(2));
        let led: Vec<_> = views.leaders().iter().map(|l| (l.since, l.term, l.master)).collect();
        assert_eq!(led, [(ms(10), 3, 1), (ms(10), 4, 2)]);
        views.add(3, view(30, 4, 3, true));
        assert_eq!(views.violations(), [], "one answer proves nothing");
        views.add(3, view(40, 4, 3, true));
        assert_eq!(views.violations()[0].what, "masters 2 and 3 both lead term 4");
    }
}
