//! The Admin service on the peer port, for `ephor members` and `ephor status`.

use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use proto_wire::cluster::admin_client::AdminClient;
use proto_wire::cluster::admin_server::Admin;
use proto_wire::cluster::{
    BackupEntry, BackupRequest, MasterStatus, Member, MembersRequest, MembersResponse, RemoveMemberRequest,
    RemoveMemberResponse, StatusRequest, StatusResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::backup::Source;
use crate::members::wire_members;
use crate::peer::require_operator;

/// How long another master may take to answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a membership change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers operators.
pub struct AdminService {
    /// The member this runs on.
    pub consensus: Arc<Consensus>,
    /// The way to the others.
    pub network: Arc<dyn Network>,
    /// What backups are made from.
    pub backups: Arc<Source>,
}

#[tonic::async_trait]
impl Admin for AdminService {
    type BackupStream = BoxStream<'static, Result<BackupEntry, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        require_operator(&request)?;
        let failed = |error: crate::backup::Error| Status::unavailable(error.to_string());
        let opened = self.backups.open().await.map_err(failed)?;
        let head = opened.head();
        tracing::info!(revision = head.revision, stale = head.stale, "an operator takes a backup");
        let entries = ReceiverStream::new(opened.stream());
        let entries = entries.map(move |entry| {
            entry.map(|entry| BackupEntry { name: entry.name, data: entry.data.into() }).map_err(failed)
        });
        Ok(Response::new(entries.boxed()))
    }

    async fn members(&self, request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        require_operator(&request)?;
        Ok(Response::new(MembersResponse {
            members: wire_members(&self.consensus),
            term: self.consensus.leadership().borrow().term,
            cluster_id: self.consensus.cluster_id().to_owned(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        require_operator(&request)?;
        let asked = request.into_inner();
        // Digests are comparable only at one revision: the one this master has reached.
        let revision = if asked.revision == 0 { self.consensus.store().revision() } else { asked.revision };
        let request = StatusRequest { revision, digest: asked.digest, local: true };
        let mut members = wire_members(&self.consensus);
        if asked.local {
            members.retain(|m| m.id == self.consensus.node_id());
        }
        let questions = members.into_iter().map(|member| self.status_of(member, request));
        Ok(Response::new(StatusResponse { masters: join_all(questions).await }))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        require_operator(&request)?;
        let id = request.into_inner().id;
        self.consensus
            .remove_master(id, CHANGE_TIMEOUT)
            .await
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(id, "a master was removed");
        Ok(Response::new(RemoveMemberResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        require_operator(&request)?;
        let id = request.into_inner().id;
        self.consensus
            .transfer_leader(id, CHANGE_TIMEOUT)
            .await
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(id, "leadership was handed over");
        Ok(Response::new(TransferLeaderResponse {}))
    }
}

impl AdminService {
    async fn status_of(&self, member: Member, request: StatusRequest) -> MasterStatus {
        let answer = if member.id == self.consensus.node_id() {
            self.local(&request).await
        } else {
            self.ask(&member, request).await
        };
        let mut status = answer.unwrap_or_else(|error| MasterStatus { error, ..MasterStatus::default() });
        status.member = Some(member);
        status
    }

    async fn ask(&self, member: &Member, request: StatusRequest) -> Result<MasterStatus, String> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: PEER_TIMEOUT,
        };
        let channel =
            channel(self.network.clone(), &member.peer_address, options).map_err(|e| e.to_string())?;
        let mut request = Request::new(request);
        request.set_timeout(PEER_TIMEOUT);
        let answer = AdminClient::new(channel).status(request).await.map_err(|s| s.message().to_owned())?;
        answer.into_inner().masters.into_iter().next().ok_or_else(|| "an empty answer".to_owned())
    }

    async fn local(&self, request: &StatusRequest) -> Result<MasterStatus, String> {
        let mut status = MasterStatus {
            revision: self.consensus.store().revision(),
            applied_index: self.consensus.applied_index(),
            term: self.consensus.leadership().borrow().term,
            objects: self.consensus.store().len() as u64,
            resident_bytes: resident_bytes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..MasterStatus::default()
        };
        if request.digest {
            let digest = self.consensus.state_digest(Some(request.revision), PEER_TIMEOUT).await;
            let digest = digest.map_err(|e| e.to_string())?;
            status.revision = digest.revision;
            status.digest = digest.hash.to_vec();
            status.objects = digest.objects;
        }
        Ok(status)
    }
}

/// Resident memory of this process in bytes; 0 where /proc does not say.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or_default() * 1024
}
