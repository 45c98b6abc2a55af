//! The Join service on the peer port. In exchange for a token, a master gets the
//! cluster's keys and membership as a learner, and a worker gets a certificate for
//! `system:node:NAME`, with which it gets the next one, even after it has expired.
//! `node_names.rs` says which names nodes may have.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use consensus::{ChangeError, Consensus, MasterAddress};
use proto_env::Env;
use proto_env::grpc::PeerInfo;
use proto_wire::cluster::join_server::Join;
use proto_wire::cluster::{
    JoinMasterRequest, JoinMasterResponse, JoinWorkerRequest, JoinWorkerResponse, RenewCertificateRequest,
    RenewCertificateResponse,
};
use proto_wire::settings::ClusterSettings;
use proto_wire::token::JoinToken;
use tonic::{Request, Response, Status};

use crate::config;
use crate::members::{serving_members, voter_called, wire_members};
use crate::node_names;
use crate::peer::named_node;
use crate::pki::{ClusterKeys, Subject, Usage, Validity};
use crate::tokens::{self, TokenGrants, USAGE_MASTER, USAGE_WORKER};

/// Longest time that a join waits for a quorum.
const DEADLINE: Duration = Duration::from_secs(20);

/// Implements the Join service.
pub struct JoinService {
    /// The consensus member of this master.
    pub consensus: Arc<Consensus>,
    /// The keys that joining masters receive.
    pub keys: Arc<ClusterKeys>,
    /// The settings that joining nodes receive.
    pub settings: ClusterSettings,
    /// Lifetime of the certificates that nodes receive.
    pub certificate_lifetime: Duration,
    /// Provides the clock for the expiry of tokens and the validity of certificates.
    pub env: Env,
}

impl JoinService {
    async fn admit(&self, token: &str, usage: &str) -> Result<TokenGrants, Status> {
        let token: JoinToken =
            token.parse().map_err(|e: proto_wire::token::Error| Status::invalid_argument(e.to_string()))?;
        self.barrier("check the token").await?;
        tokens::check(&self.consensus, &token, usage, self.env.clock.now())
            .map_err(|e| Status::permission_denied(e.to_string()))
    }

    async fn barrier(&self, purpose: &str) -> Result<(), Status> {
        let reached = self.consensus.read_barrier(DEADLINE).await;
        reached.map_err(|e| Status::unavailable(format!("the cluster cannot {purpose} now: {e}"))).map(drop)
    }

    /// Whether the local replica has a Node of this name.
    fn node_exists(&self, name: &str) -> bool {
        self.consensus.store().get(&format!("/registry/core/nodes/{name}")).is_some()
    }

    /// Refuses the join when the name is not free for this node.
    fn check_node(&self, name: &str, admitted: &TokenGrants) -> Result<(), Status> {
        node_names::check(name, &self.settings).map_err(Status::invalid_argument)?;
        if self.consensus.members().iter().any(|member| member.name == name) {
            return Err(Status::invalid_argument(format!(
                "a master is called {name}: give the worker another name (--name)"
            )));
        }
        match &admitted.node {
            Some(only) if only != name => Err(Status::permission_denied(format!(
                "the token is for node {only} alone: create one with `ephor token create`"
            ))),
            None if self.node_exists(name) => Err(Status::already_exists(format!(
                "there is a node {name}: start it with the data directory it has; where that is lost, use a \
                 token made with `ephor token create --node {name}`, or delete the Node first"
            ))),
            _ => Ok(()),
        }
    }

    /// Signs a node's client and serving certificates for the public keys of two requests.
    /// The serving certificate carries the node's name and the address it calls from.
    fn sign(
        &self,
        name: &str,
        remote: Option<IpAddr>,
        csr_pem: &str,
        serving_csr_pem: &str,
    ) -> Result<(String, String), Status> {
        let refuse = |e: crate::pki::Error| Status::invalid_argument(format!("certificate request: {e}"));
        let subject = Subject::node(name);
        let names: Vec<String> =
            std::iter::once(name.to_owned()).chain(remote.map(|r| r.to_string())).collect();
        let validity = Validity::new(self.env.clock.now(), self.certificate_lifetime);
        let authority = &self.keys.authority;
        // The node also serves operators with this certificate; they check its subject, so it needs no names.
        let client = authority.sign(csr_pem, &subject, &[], Usage::Peer, validity).map_err(refuse)?;
        let serving = authority
            .node_serving()
            .and_then(|nodes| nodes.sign(serving_csr_pem, &subject, &names, Usage::Server, validity))
            .map_err(refuse)?;
        Ok((client, serving))
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join_master(
        &self,
        request: Request<JoinMasterRequest>,
    ) -> Result<Response<JoinMasterResponse>, Status> {
        let request = request.into_inner();
        self.admit(&request.token, USAGE_MASTER).await?;
        let expected = request.expected_masters;
        if expected != 0 && expected.is_multiple_of(2) {
            return Err(Status::invalid_argument(config::Error::EvenMasters(expected).to_string()));
        }
        node_names::check_master(&request.name).map_err(Status::invalid_argument)?;
        let replaces = match &request.replace[..] {
            "" => 0,
            old => voter_called(&self.consensus, old).map_err(Status::failed_precondition)?,
        };
        let address = MasterAddress {
            name: request.name.clone(),
            peer_address: request.peer_address,
            api_address: request.api_address,
            replaces,
        };
        let node_id = self.consensus.add_master(address, DEADLINE).await.map_err(|error| match error {
            ChangeError::Refused(_) => Status::failed_precondition(error.to_string()),
            ChangeError::Failed(_) => {
                Status::unavailable(format!("{} cannot join now: {error}", request.name))
            }
        })?;
        tracing::info!(name = request.name, node_id, "a master joins");
        Ok(Response::new(JoinMasterResponse {
            node_id,
            cluster_id: self.consensus.cluster_id().to_owned(),
            ca_certificate_pem: self.keys.authority.certificate_pem().to_owned(),
            ca_key_pem: self.keys.authority.key_pem().to_owned(),
            service_account_key_pem: self.keys.service_account_key_pem.clone(),
            data_key: self.keys.data_key.to_vec(),
            members: wire_members(&self.consensus),
            cluster_config_json: self.settings.to_json(),
            supersedes: self.consensus.supersedes().to_vec(),
        }))
    }

    async fn join_worker(
        &self,
        request: Request<JoinWorkerRequest>,
    ) -> Result<Response<JoinWorkerResponse>, Status> {
        let remote = request.extensions().get::<PeerInfo>().map(|p| p.remote.ip());
        let request = request.into_inner();
        let admitted = self.admit(&request.token, USAGE_WORKER).await?;
        self.check_node(&request.name, &admitted)?;
        only_from(&request.addresses, remote)?;
        let (certificate, serving) =
            self.sign(&request.name, remote, &request.csr_pem, &request.serving_csr_pem)?;
        tracing::info!(name = request.name, "a worker joins");
        Ok(Response::new(JoinWorkerResponse {
            cluster_id: self.consensus.cluster_id().to_owned(),
            ca_certificate_pem: self.keys.authority.certificate_pem().to_owned(),
            certificate_pem: certificate,
            serving_certificate_pem: serving,
            members: serving_members(&self.consensus),
            cluster_config_json: self.settings.to_json(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = request.extensions().get::<PeerInfo>();
        let remote = caller.map(|caller| caller.remote.ip());
        let identity = caller.and_then(|c| c.identity.as_ref().or(c.expired_identity.as_ref()));
        let name = named_node(identity)?;
        let request = request.into_inner();
        self.barrier("look the node up").await?;
        node_names::check(&name, &self.settings).map_err(Status::permission_denied)?;
        if !self.node_exists(&name) {
            return Err(Status::permission_denied(format!(
                "node {name} was deleted: it needs a token to join again, and an empty data directory"
            )));
        }
        let (certificate, serving) = self.sign(&name, remote, &request.csr_pem, &request.serving_csr_pem)?;
        tracing::info!(node = name, "a node's certificates were renewed");
        Ok(Response::new(RenewCertificateResponse {
            certificate_pem: certificate,
            serving_certificate_pem: serving,
        }))
    }
}

/// Refuses a serving certificate for any address but the one the node calls from, which
/// might belong to another host.
fn only_from(wanted: &[String], remote: Option<IpAddr>) -> Result<(), Status> {
    let remote = remote.map(|r| r.to_string());
    let Some(other) = wanted.iter().find(|w| Some(*w) != remote.as_ref()) else { return Ok(()) };
    Err(Status::invalid_argument(format!(
        "the node calls from {} and cannot have a certificate for {other}: give --address the address that \
         masters reach this node at",
        remote.as_deref().unwrap_or("an unknown address")
    )))
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
