//! Members as they travel: from `consensus` to the wire.

use consensus::Consensus;
use proto_wire::cluster::Member;

/// All members as this master sees them.
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
        })
        .collect();
    wire.sort_by_key(|m| m.id);
    wire
}
