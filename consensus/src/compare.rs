//! Background comparison of replicas' fingerprints, at log entries that both have applied. A replica that
//! differs from a majority of the voters stops serving at once and rebuilds itself (`rebuild.rs`). Without
//! such a majority nobody can tell which replica is right, and only an alarm is raised. The same messages
//! carry alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use proto_env::planted;
use proto_wire::raft::{CompareRequest, CompareResponse};

use crate::alarms::{Alarm, AlarmKind};
use crate::consensus::Consensus;
use crate::network::Lane;
use crate::types::{Member, NodeId};

/// Time between two comparisons, in leases: a second with the usual timers.
const LEASES: u32 = 4;
/// Time between comparisons until one has succeeded: after a start, and after a rebuild.
const FIRST: Duration = Duration::from_millis(100);
/// Time limit of another master's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The digest of a replica after one log entry.
type Print = Vec<u8>;

/// The result of comparing one log entry's fingerprints.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// A majority agrees with this replica; these masters do not.
    Right(Vec<NodeId>),
    /// These masters are a majority and disagree with this replica.
    Wrong(Vec<NodeId>),
    /// No majority agrees, or too few masters answered.
    Unclear,
}

/// Compares until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    // Planted: nobody looks, so that the mistake is seen from outside.
    let looks = planted::any().is_none();
    let mut settled = false;
    loop {
        // A master compares soon after it has started.
        let pause = if settled { consensus.lease * LEASES } else { FIRST };
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => if looks {
                settled = consensus.compare().await;
            },
        }
    }
}

impl Consensus {
    /// Returns why this replica does not serve: it differs from the others and is being rebuilt. `None`: it
    /// serves.
    pub fn quarantined(&self) -> Option<String> {
        self.defence.quarantined()
    }

    /// Returns this master's alarms.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.defence.alarms().own()
    }

    /// Raises an alarm that another part of this master found, or clears it if `reason` is `None`.
    pub fn set_alarm(&self, kind: AlarmKind, reason: Option<String>) {
        match reason {
            Some(reason) => self.defence.raise(kind, reason),
            None => self.defence.alarms().clear(kind),
        }
    }

    /// Returns the last alarms heard from another master.
    pub fn alarms_of(&self, node: NodeId) -> Vec<Alarm> {
        self.defence.alarms().of(node)
    }

    /// Answers another master's comparison.
    pub(crate) fn compare_here(&self, from: Option<NodeId>, request: CompareRequest) -> CompareResponse {
        if let Some(from) = from {
            self.defence.alarms().heard(from, request.alarms);
        }
        let checkpoint = self.store.checkpoint(request.index).filter(|checkpoint| checkpoint.index > 0);
        CompareResponse {
            index: checkpoint.map_or(0, |checkpoint| checkpoint.index),
            fingerprint: checkpoint.map(|it| it.fingerprint.to_bytes().to_vec()).unwrap_or_default(),
            alarms: self.defence.alarms().to_wire(),
        }
    }

    /// Tells the other masters this master's alarms before it stops; waits no longer than for one answer.
    pub(crate) async fn tell_alarms(&self) {
        let others = self.others();
        join_all(others.iter().map(|member| self.ask(member, 0))).await;
    }

    fn others(&self) -> Vec<Member> {
        self.members().into_iter().filter(|member| member.id != self.node_id).collect()
    }

    /// Compares once; returns whether this replica is known to be right.
    async fn compare(self: &Arc<Self>) -> bool {
        let members = self.members();
        self.defence.alarms().retain(|node| members.iter().any(|member| member.id == node));
        let others = self.others();
        let newest = self.store.checkpoint(u64::MAX).map_or(0, |checkpoint| checkpoint.index);
        let answers = join_all(others.iter().map(|member| self.ask(member, newest))).await;
        let answers: Vec<_> = answers.into_iter().flatten().filter(|(_, answer)| answer.index > 0).collect();
        // Each answer is for the last entry that both have applied; usually that settles the comparison.
        let differs = |(_, answer): &&(NodeId, CompareResponse)| {
            self.print(answer.index).is_some_and(|print| print != answer.fingerprint)
        };
        let same = |(_, answer): &&(NodeId, CompareResponse)| {
            self.print(answer.index).is_some_and(|print| print == answer.fingerprint)
        };
        let voters: BTreeSet<NodeId> = members.iter().filter(|it| it.voter).map(|it| it.id).collect();
        if answers.iter().all(|answer| !differs(&answer)) {
            let agreeing = answers.iter().filter(same).filter(|(id, _)| voters.contains(id)).count();
            if agreeing + usize::from(voters.contains(&self.node_id)) > voters.len() / 2 {
                self.is_right();
                return true;
            }
            return false;
        }
        // Only fingerprints of the same entry show which replica is right.
        let Some(index) = answers.iter().map(|(_, answer)| answer.index).chain([newest]).min() else {
            return false;
        };
        let Some(own) = self.print(index) else { return false };
        let answers = join_all(others.iter().map(|member| self.ask(member, index))).await;
        let answers = answers.into_iter().flatten().filter(|(_, answer)| answer.index == index);
        let mut prints: BTreeMap<NodeId, Print> = answers.map(|(id, it)| (id, it.fingerprint)).collect();
        prints.insert(self.node_id, own);
        let finding = judge(self.node_id, &prints, &voters);
        let right = matches!(finding, Finding::Right(_));
        self.act_on(index, finding).await;
        right
    }

    async fn act_on(self: &Arc<Self>, index: u64, finding: Finding) {
        match finding {
            Finding::Wrong(healthy) => {
                let reason = format!(
                    "this replica differs from the majority at log entry {index}: it does not serve and takes \
                     the leader's state"
                );
                self.defence.raise(AlarmKind::Diverged, reason.clone());
                self.quarantine(reason);
                self.rebuild(&healthy).await;
            }
            Finding::Right(others) => {
                self.is_right();
                if !others.is_empty() {
                    let reason = format!("masters {others:?} differ from the majority at log entry {index}");
                    self.defence.raise(AlarmKind::ReplicaDiffers, reason);
                }
            }
            Finding::Unclear => {
                let reason = format!(
                    "replicas differ at log entry {index}, and no majority of the voters agrees: compare \
                     `ephor status --digest`, and remove the wrong one"
                );
                self.defence.raise(AlarmKind::ReplicaDiffers, reason);
            }
        }
    }

    fn quarantine(&self, reason: String) {
        self.peers.set_quarantined(true);
        self.defence.set_quarantine(Some(reason));
        self.store.end_watches();
    }

    /// Ends the quarantine and clears the alarm: a majority of the voters agrees with this replica.
    fn is_right(&self) {
        if self.quarantined().is_some() {
            tracing::info!("this replica agrees with the majority again and serves");
            self.peers.set_quarantined(false);
            self.defence.set_quarantine(None);
        }
        self.defence.alarms().clear(AlarmKind::Diverged);
        self.defence.alarms().clear(AlarmKind::ReplicaDiffers);
    }

    /// Returns the fingerprint of this replica after exactly this entry; `None` if it is not remembered.
    fn print(&self, index: u64) -> Option<Print> {
        let found = self.store.checkpoint(index).filter(|checkpoint| checkpoint.index == index)?;
        Some(found.fingerprint.to_bytes().to_vec())
    }

    async fn ask(&self, member: &Member, index: u64) -> Option<(NodeId, CompareResponse)> {
        let mut client = self.peers.client(member.id, &member.peer_address, Lane::Forward).ok()?;
        let alarms = self.defence.alarms().to_wire();
        let request = CompareRequest { index, alarms };
        let call = client.compare(self.peers.request(member.id, request));
        // Without `Peers::call`: a missing answer must not close the connection that others share.
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await.ok()?.ok()?.into_inner();
        self.defence.alarms().heard(member.id, answer.alarms.clone());
        Some((member.id, answer))
    }
}

/// Judges this replica by the majority of all voters, counting those that did not answer too.
fn judge(me: NodeId, prints: &BTreeMap<NodeId, Print>, voters: &BTreeSet<NodeId>) -> Finding {
    let mut holders: BTreeMap<&Print, Vec<NodeId>> = BTreeMap::new();
    for (id, print) in prints.iter().filter(|(id, _)| voters.contains(id)) {
        holders.entry(print).or_default().push(*id);
    }
    let Some((right, majority)) = holders.into_iter().find(|(_, ids)| ids.len() > voters.len() / 2) else {
        return Finding::Unclear;
    };
    if prints.get(&me) == Some(right) {
        return Finding::Right(prints.iter().filter(|(_, it)| *it != right).map(|(id, _)| *id).collect());
    }
    Finding::Wrong(majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints(prints: &[(NodeId, u8)]) -> BTreeMap<NodeId, Print> {
        prints.iter().map(|(id, print)| (*id, vec![*print])).collect()
    }

    #[test]
    fn only_a_majority_of_all_voters_convicts() {
        let three = BTreeSet::from([1, 5, 9]);
        let all = prints(&[(1, 7), (5, 7), (9, 8)]);
        assert_eq!(judge(9, &all, &three), Finding::Wrong(vec![1, 5]));
        assert_eq!(judge(1, &all, &three), Finding::Right(vec![9]));
        // One voter did not answer: two that differ are no majority.
        assert_eq!(judge(9, &prints(&[(5, 7), (9, 8)]), &three), Finding::Unclear);
        assert_eq!(judge(9, &prints(&[(1, 6), (5, 7), (9, 8)]), &three), Finding::Unclear);
        let five = BTreeSet::from([1, 2, 3, 4, 5]);
        assert_eq!(judge(1, &prints(&[(1, 7), (2, 8), (3, 8)]), &five), Finding::Unclear);
        assert_eq!(
            judge(1, &prints(&[(1, 7), (2, 8), (3, 8), (4, 8)]), &five),
            Finding::Wrong(vec![2, 3, 4])
        );
        // A learner is judged, but does not count for the majority.
        assert_eq!(judge(4, &prints(&[(1, 7), (5, 7), (4, 8)]), &three), Finding::Wrong(vec![1, 5]));
        assert_eq!(
            judge(1, &prints(&[(1, 7), (4, 8), (6, 8)]), &BTreeSet::from([1])),
            Finding::Right(vec![4, 6])
        );
    }
}
