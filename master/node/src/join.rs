//! The Join service on the peer port: a token buys a master the cluster's keys
//! and a place as learner, and a worker a certificate for `system:node:NAME`.

use std::sync::Arc;
use std::time::Duration;

use consensus::{ChangeError, Consensus, MasterAddress};
use proto_env::Env;
use proto_env::grpc::PeerInfo;
use proto_wire::cluster::join_server::Join;
use proto_wire::cluster::{JoinMasterRequest, JoinMasterResponse, JoinWorkerRequest, JoinWorkerResponse};
use proto_wire::settings::ClusterSettings;
use proto_wire::token::JoinToken;
use tonic::{Request, Response, Status};

use crate::config;
use crate::members::{voter_called, wire_members};
use crate::pki::{ClusterKeys, Subject};
use crate::tokens::{self, USAGE_MASTER, USAGE_WORKER};

/// How long a join may wait for a quorum.
const DEADLINE: Duration = Duration::from_secs(20);

/// Answers joiners.
pub struct JoinService {
    /// The member this runs on.
    pub consensus: Arc<Consensus>,
    /// What joiners are handed.
    pub keys: Arc<ClusterKeys>,
    /// What joiners must know.
    pub settings: ClusterSettings,
    /// The clock that tokens expire by.
    pub env: Env,
}

impl JoinService {
    async fn admit(&self, token: &str, usage: &str) -> Result<(), Status> {
        let token: JoinToken =
            token.parse().map_err(|e: proto_wire::token::Error| Status::invalid_argument(e.to_string()))?;
        self.consensus
            .read_barrier(DEADLINE)
            .await
            .map_err(|e| Status::unavailable(format!("the cluster cannot check the token now: {e}")))?;
        tokens::check(&self.consensus, &token, usage, self.env.clock.now())
            .map_err(|e| Status::permission_denied(e.to_string()))
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
        check_name(&request.name)?;
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
        self.admit(&request.token, USAGE_WORKER).await?;
        check_name(&request.name)?;
        let names = serving_names(&request.name, &request.addresses, remote)?;
        let (certificate, serving) = sign_node(
            &self.keys,
            &request.name,
            &request.csr_pem,
            &request.serving_csr_pem,
            &names,
            self.env.clock.now(),
        )?;
        tracing::info!(name = request.name, "a worker joins");
        Ok(Response::new(JoinWorkerResponse {
            cluster_id: self.consensus.cluster_id().to_owned(),
            ca_certificate_pem: self.keys.authority.certificate_pem().to_owned(),
            certificate_pem: certificate,
            serving_certificate_pem: serving,
            members: wire_members(&self.consensus),
            cluster_config_json: self.settings.to_json(),
        }))
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    match proto_api::names::dns1123_subdomain(name).into_iter().next() {
        None => Ok(()),
        Some(why) => Err(Status::invalid_argument(format!("node name {name:?}: {why}"))),
    }
}

/// A node's serving certificate carries its name and the address it called from;
/// any other address it asks for might be somebody else's.
fn serving_names(
    name: &str,
    wanted: &[String],
    remote: Option<std::net::IpAddr>,
) -> Result<Vec<String>, Status> {
    let remote = remote.map(|r| r.to_string());
    if let Some(other) = wanted.iter().find(|w| Some(*w) != remote.as_ref()) {
        return Err(Status::invalid_argument(format!(
            "the node calls from {} and cannot have a certificate for {other}: give --address the address \
             that masters reach this node at",
            remote.as_deref().unwrap_or("an unknown address")
        )));
    }
    Ok(std::iter::once(name.to_owned()).chain(remote).collect())
}

/// Signs the client and the serving certificate of a node.
pub fn sign_node(
    keys: &ClusterKeys,
    name: &str,
    csr_pem: &str,
    serving_csr_pem: &str,
    serving_names: &[String],
    now: std::time::SystemTime,
) -> Result<(String, String), Status> {
    let refuse = |e: crate::pki::Error| Status::invalid_argument(format!("certificate request: {e}"));
    let subject = Subject::node(name);
    let certificate = keys.authority.sign(csr_pem, &subject, &[], now.into()).map_err(refuse)?;
    let serving =
        keys.authority.sign(serving_csr_pem, &subject, serving_names, now.into()).map_err(refuse)?;
    Ok((certificate, serving))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_no_certificate_for_an_address_it_does_not_call_from() {
        let remote = Some("10.0.0.7".parse().unwrap());
        assert_eq!(serving_names("w1", &["10.0.0.7".into()], remote).unwrap(), ["w1", "10.0.0.7"]);
        assert!(serving_names("w1", &["10.96.0.1".into()], remote).is_err());
    }
}
