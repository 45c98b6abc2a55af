//! Changes the group of masters as an operator would: through the Admin service of a master, and the agent of
//! the machine where a new master starts. `inject` runs each change as a task of its own, since it may take
//! long.

use std::time::Duration;

use http::{Method, StatusCode};
use proto_wire::cluster::{Member, RemoveMemberRequest, TransferLeaderRequest};
use proto_wire::token::JoinToken;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::access::{Access, Agent, Error, within};
use crate::http::Client;
use crate::observer::Observer;

/// Maximum time of a change.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);
/// Maximum time of one request.
const ASK_WITHIN: Duration = Duration::from_secs(35);
/// Pause before a request is repeated.
const AGAIN: Duration = Duration::from_millis(300);
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

/// Changes the members of a cluster.
#[derive(Clone)]
pub struct Changer {
    /// Credentials for the cluster.
    pub access: Access,
    /// Observer that knows the leader and the members.
    pub observer: Observer,
}

impl Changer {
    /// Transfers leadership to the master with this id.
    ///
    /// # Errors
    /// Fails with the masters' last answer.
    pub async fn transfer(&self, id: u64) -> Result<(), Error> {
        self.until(Order::Lead(id)).await
    }

    /// Removes the master with this id for good.
    ///
    /// # Errors
    /// Fails with the masters' last answer.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        self.until(Order::Leave(id)).await
    }

    /// Starts a new master called `name` on the node of `agent`, and waits until it is a member.
    ///
    /// # Errors
    /// Fails if it did not become a member in time.
    pub async fn add(&self, agent: &Agent, name: &str, token: &JoinToken) -> Result<Member, Error> {
        let known = |observer: &Observer| observer.views(|views| views.members(observer.elapsed()));
        let before: Vec<u64> = known(&self.observer).iter().map(|member| member.id).collect();
        let join = known(&self.observer).into_iter().map(|member| member.peer_address).collect();
        agent.start_node(join, token.to_string()).await?;
        let end = tokio::time::Instant::now() + CHANGE_WITHIN;
        while tokio::time::Instant::now() < end {
            let joined =
                known(&self.observer).into_iter().find(|m| m.name == name && !before.contains(&m.id));
            if let Some(member) = joined {
                return Ok(member);
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(Error::Node(format!("{name} did not join within {CHANGE_WITHIN:?}")))
    }

    /// Repeats a request to the current leader until it has taken effect.
    async fn until(&self, order: Order) -> Result<(), Error> {
        let end = tokio::time::Instant::now() + CHANGE_WITHIN;
        let mut last = Error::Node("nobody leads".to_owned());
        while tokio::time::Instant::now() < end {
            let now = self.observer.elapsed();
            let (leader, members) = self.observer.views(|views| (views.leader(now), views.members(now)));
            if let Some(member) = members.iter().find(|member| Some(member.id) == leader) {
                match self.ask(member, order).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(last)
    }

    async fn ask(&self, member: &Member, order: Order) -> Result<(), Error> {
        let mut admin = self.access.admin(&member.peer_address)?;
        match order {
            Order::Lead(id) => {
                within(ASK_WITHIN, admin.transfer_leader(TransferLeaderRequest { id })).await.map(drop)
            }
            Order::Leave(id) => {
                within(ASK_WITHIN, admin.remove_member(RemoveMemberRequest { id, others: Vec::new() }))
                    .await
                    .map(drop)
            }
        }
    }
}

/// Request to a leader, with the id of the master concerned.
#[derive(Debug, Clone, Copy)]
enum Order {
    Lead(u64),
    Leave(u64),
}

/// Creates a token that masters join with, valid for an hour, and stores it through the API of `client`.
///
/// # Errors
/// Fails if the token was not stored.
pub async fn store_token(
    access: &Access,
    client: &mut Client,
    random: &mut StdRng,
    expires: &str,
) -> Result<JoinToken, Error> {
    let mut text = |length: usize| -> String {
        (0..length)
            .map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[random.random_range(0..36)]))
            .collect()
    };
    let token = JoinToken { ca_hash: access.ca_hash(), id: text(6), secret: text(16) };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id)},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "usage-ephor-join-master": "true",
            "expiration": expires, "description": "ephor chaos run",
        },
    });
    match client.ask(Method::POST, SECRETS, Some(&secret)).await {
        Ok(answer) if answer.status.is_success() => Ok(token),
        Ok(answer) => Err(Error::Node(format!("the join token was not stored: {}", answer.body["message"]))),
        Err(failure) => Err(Error::Node(format!("the join token was not stored: {failure:?}"))),
    }
}

/// Deletes a token; returns false if it may still be there.
pub async fn delete_token(client: &mut Client, token: &JoinToken) -> bool {
    let path = format!("{SECRETS}/bootstrap-token-{}", token.id);
    let answer = client.ask(Method::DELETE, &path, None).await;
    answer.is_ok_and(|answer| answer.status.is_success() || answer.status == StatusCode::NOT_FOUND)
}
