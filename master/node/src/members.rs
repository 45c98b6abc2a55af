//! Conversions of members: from `consensus` to the wire format, and from an
//! operator's name or id for a member to its id.

use std::time::Duration;

use consensus::{Consensus, MemberHealth, NodeId};
use proto_wire::cluster::Member;

/// Number of entries behind the leader from which on a member has not caught up.
const BEHIND_ENTRIES: u64 = 128;

/// Returns all members as this master knows them, without their health.
pub fn wire_members(consensus: &Consensus) -> Vec<Member> {
    let members = consensus.members();
    let mut wire: Vec<Member> = members
        .into_iter()
        .map(|m| Member {
            id: m.id,
            name: m.name,
            peer_address: m.peer_address,
            api_address: m.api_address,
            voter: m.voter,
            leader: m.leader,
            waiting: !m.voter,
            replaces: m.replaces,
            ..Member::default()
        })
        .collect();
    wire.sort_by_key(|m| m.id);
    wire
}

/// Returns the members that clients may be sent to: the voters. A master that has just joined
/// votes once it has caught up.
pub fn serving_members(consensus: &Consensus) -> Vec<Member> {
    let mut members = wire_members(consensus);
    members.retain(|member| member.voter);
    members
}

/// Returns [`wire_members`] with their health, which only a leader knows.
pub fn members_with_health(consensus: &Consensus) -> Vec<Member> {
    let mut members = wire_members(consensus);
    let all = consensus.health();
    let config = consensus.autopilot();
    for member in &mut members {
        let Some(health) = all.iter().find(|health| health.id == member.id) else { continue };
        member.lag = health.lag;
        member.heard_ms = health.heard.map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX));
        let limit = if member.voter { config.dead_after } else { config.learner_expiry };
        member.health = in_words(health, member.voter, limit);
    }
    members
}

fn in_words(health: &MemberHealth, voter: bool, limit: Option<Duration>) -> String {
    if health.running {
        return match health.lag {
            Some(lag) if lag > BEHIND_ENTRIES => "catching up".to_owned(),
            None => "starting".to_owned(),
            _ => "ok".to_owned(),
        };
    }
    let silent = health.silent.unwrap_or_default();
    let due = match (voter, limit, health.lag) {
        (true, Some(limit), _) if silent < limit => format!(", due in {} s", (limit - silent).as_secs()),
        (true, Some(_), _) => ", due for replacement".to_owned(),
        (false, Some(limit), None) if silent < limit => {
            format!(", forgotten in {} s", (limit - silent).as_secs())
        }
        _ => String::new(),
    };
    format!("silent for {} s{due}", silent.as_secs())
}

/// Returns the id of the voter with the name or id `text`.
pub fn voter_called(consensus: &Consensus, text: &str) -> Result<NodeId, String> {
    let members = consensus.members();
    let named: Vec<NodeId> = members
        .iter()
        .filter(|m| m.voter && (m.name == text || m.id.to_string() == text))
        .map(|m| m.id)
        .collect();
    match named[..] {
        [id] => Ok(id),
        [] => {
            let voters = members.iter().filter(|m| m.voter).map(|m| m.name.as_str());
            Err(format!(
                "no voting master is called {text}: there are {}",
                voters.collect::<Vec<_>>().join(", ")
            ))
        }
        _ => Err(format!("several masters are called {text}: give the id")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(running: bool, lag: Option<u64>, silent: Option<u64>) -> MemberHealth {
        MemberHealth { id: 1, running, lag, heard: None, silent: silent.map(Duration::from_secs) }
    }

    #[test]
    fn health_says_what_comes_next() {
        let limit = Some(Duration::from_secs(600));
        assert_eq!(in_words(&health(true, Some(3), None), true, limit), "ok");
        assert_eq!(in_words(&health(true, Some(300), None), true, limit), "catching up");
        assert_eq!(in_words(&health(true, None, None), false, limit), "starting");
        assert_eq!(in_words(&health(false, Some(3), Some(12)), true, limit), "silent for 12 s, due in 588 s");
        assert_eq!(in_words(&health(false, Some(3), Some(12)), true, None), "silent for 12 s");
        assert_eq!(
            in_words(&health(false, None, Some(12)), false, limit),
            "silent for 12 s, forgotten in 588 s"
        );
    }
}
