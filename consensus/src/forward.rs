//! Forwards a follower's proposals to the leader: those that wait go in one call, in order, and one answer
//! has the result of each. `proposer.rs` makes the batches.

use std::sync::{Arc, Mutex};

use proto_wire::raft::{ProposeRequest, ProposeResponse};
use storage::Command;
use storage::codec::{decode, encode};
use tokio::time::Instant;

use crate::network::open_call::OpenCall;
use crate::network::{Lane, Peers, lock};
use crate::proposer::Verdict;
use crate::types::NodeId;

/// The connection of a follower to one leader.
#[derive(Clone)]
pub(crate) struct Forward {
    pub(crate) peers: Arc<Peers>,
    pub(crate) leader: NodeId,
    /// The leader's peer address in the membership.
    pub(crate) address: String,
    /// Open calls that are idle; at most as many as there may be batches in flight.
    open: Arc<Mutex<Vec<Calls>>>,
}

type Calls = OpenCall<ProposeRequest, ProposeResponse>;

impl Forward {
    pub(crate) fn new(peers: Arc<Peers>, leader: NodeId, address: String) -> Self {
        Self { peers, leader, address, open: Arc::default() }
    }

    /// Sends the commands to the leader and returns its verdict on each, in order.
    pub(crate) async fn propose(&self, commands: Vec<Command>, until: Instant) -> Vec<Verdict> {
        let count = commands.len();
        let encoded: Result<Vec<_>, _> = commands.iter().map(|command| encode("command", command)).collect();
        let commands = match encoded {
            Ok(commands) => commands,
            Err(error) => return vec![Verdict::NotEntered(error.to_string()); count],
        };
        let mut verdicts = match self.ask(commands, until).await {
            Ok(verdicts) => verdicts,
            Err(verdict) => return vec![verdict; count],
        };
        verdicts.resize(count, Verdict::Unknown("the leader did not say what came of it".to_owned()));
        verdicts
    }

    async fn ask(&self, commands: Vec<Vec<u8>>, until: Instant) -> Result<Vec<Verdict>, Verdict> {
        let Self { peers, leader, address, .. } = self;
        let deadline = until.saturating_duration_since(Instant::now());
        let mut client = peers
            .client(*leader, address, Lane::Forward)
            .map_err(|error| Verdict::NotEntered(error.to_string()))?;
        // The leader's deadline is a little earlier than this master's, so that its answer is back in time.
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let message = ProposeRequest { commands, deadline_ms };
        let open = lock(&self.open).pop();
        let call = OpenCall::ask(open, message, async |messages| {
            client.propose(peers.request(*leader, messages)).await
        });
        match peers.call(*leader, Lane::Forward, deadline, call).await {
            Ok((response, open)) => {
                lock(&self.open).push(open);
                decode("verdicts", &response.verdicts)
                    .map_err(|error: storage::Error| Verdict::Unknown(error.to_string()))
            }
            Err(error) if error.never_sent() => {
                Err(Verdict::NotEntered(format!("no way to the leader: {error}")))
            }
            Err(error) => Err(Verdict::Unknown(format!("asking the leader failed: {error}"))),
        }
    }
}
