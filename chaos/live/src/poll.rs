//! Polls every master for its status and reports the answers to the observer. A master that becomes a member
//! is polled from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use proto_wire::cluster::admin_client::AdminClient;
use proto_wire::cluster::{Member, MembersRequest, StatusRequest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::access::{Access, Error, within};
use crate::observer::Observer;
use crate::view::View;

/// Interval between two requests to one master.
const INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time of one answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// Polls `members`, and masters that join them, until `stop`.
pub async fn run(access: Access, observer: Observer, members: Vec<Member>, stop: CancellationToken) {
    let mut asked = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut known = members;
    loop {
        for member in known {
            asked.entry(member.id).or_insert_with(|| {
                tasks.spawn(ask_on(access.clone(), observer.clone(), member.id, member.peer_address));
            });
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL * 4) => {}
        }
        known = observer.views(|views| views.members(observer.elapsed()));
    }
}

async fn ask_on(access: Access, observer: Observer, id: u64, address: String) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // An address that does not parse will never do so.
    while let Ok(mut admin) = access.admin(&address) {
        ticks.tick().await;
        // Uses one connection as long as the master answers, then a new one.
        while let Ok(view) = ask(&mut admin, &observer, id).await {
            observer.views(|views| views.add(id, view));
            ticks.tick().await;
        }
    }
}

async fn ask(admin: &mut AdminClient<Channel>, observer: &Observer, id: u64) -> Result<View, Error> {
    let members = within(PATIENCE, admin.members(MembersRequest { local: true })).await?;
    let question = StatusRequest { revision: 0, digest: false, local: true };
    let status = within(PATIENCE, admin.status(question)).await?;
    let own = status.masters.into_iter().next().ok_or_else(|| Error::Node("an empty answer".into()))?;
    Ok(View {
        at: observer.elapsed(),
        term: own.term,
        leads: own.member.as_ref().is_some_and(|member| member.leader && member.id == id),
        leader: members.members.iter().find(|member| member.leader).map(|member| member.id),
        members: members.members,
        revision: own.revision,
    })
}
