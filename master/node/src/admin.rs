//! The Admin service on the peer port, for `ephor members` and `ephor status`.

use std::sync::Arc;
use std::time::Duration;

use consensus::{Alarm, Consensus};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use master_apiserver::ApiServer;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use proto_wire::cluster::admin_client::AdminClient;
use proto_wire::cluster::admin_server::Admin;
use proto_wire::cluster::{
    Alarm as WireAlarm, BackupEntry, BackupRequest, Certificate, MasterStatus, Member, MembersRequest,
    MembersResponse, PromoteMembersRequest, PromoteMembersResponse, RemoveMemberRequest,
    RemoveMemberResponse, ReplaceMemberRequest, ReplaceMemberResponse, StatusRequest, StatusResponse,
    TransferLeaderRequest, TransferLeaderResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::backup::BackupSource;
use crate::certificates::{Certificates, Expiration};
use crate::liveness::Liveness;
use crate::members::{members_with_health, wire_members};
use crate::peer::require_operator;

/// Deadline for another master to answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of a membership change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Implements the Admin service for operators.
pub struct AdminService {
    /// The consensus member of this master.
    pub consensus: Arc<Consensus>,
    /// The network to reach other masters by.
    pub network: Arc<dyn Network>,
    /// Makes the entries of backups.
    pub backups: Arc<BackupSource>,
    /// The certificates of this master, for their expiry.
    pub certificates: Arc<Certificates>,
    /// The API server of this master, for the end of the ServiceAccount key.
    pub api: ApiServer,
    /// The beats of nodes, which say when their certificates expire.
    pub liveness: Arc<Liveness>,
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
        let leadership = *self.consensus.leadership().borrow();
        // Only the leader knows how healthy the members are.
        if !request.get_ref().local
            && !leadership.leading
            && let Some(answer) = self.ask_leader(leadership.leader).await
        {
            return Ok(Response::new(answer));
        }
        Ok(Response::new(MembersResponse {
            members: members_with_health(&self.consensus),
            term: leadership.term,
            cluster_id: self.consensus.cluster_id().to_owned(),
            node_id: self.consensus.node_id(),
            from_leader: leadership.leading,
            autopilot: self.consensus.autopilot_actions().borrow().text.clone(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        require_operator(&request)?;
        let asked = request.into_inner();
        // State digests are comparable only at the same revision: the one this master has reached.
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
        let request = request.into_inner();
        let ids: Vec<u64> = std::iter::once(request.id).chain(request.others).collect();
        self.are_members(&ids).await?;
        self.consensus
            .remove_masters(&ids, CHANGE_TIMEOUT)
            .await
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(?ids, "masters were removed");
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

    async fn promote_members(
        &self,
        request: Request<PromoteMembersRequest>,
    ) -> Result<Response<PromoteMembersResponse>, Status> {
        require_operator(&request)?;
        let ids = request.into_inner().ids;
        self.consensus
            .promote_masters(&ids, CHANGE_TIMEOUT)
            .await
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(?ids, "masters were promoted");
        Ok(Response::new(PromoteMembersResponse {}))
    }

    async fn replace_member(
        &self,
        request: Request<ReplaceMemberRequest>,
    ) -> Result<Response<ReplaceMemberResponse>, Status> {
        require_operator(&request)?;
        let request = request.into_inner();
        let wanted = (request.new != 0).then_some(request.new);
        let new = self
            .consensus
            .replace_master(request.old, wanted, CHANGE_TIMEOUT)
            .await
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(old = request.old, new, "a master was replaced");
        Ok(Response::new(ReplaceMemberResponse { new }))
    }
}

impl AdminService {
    /// Refuses ids that belong to no member. The change itself would take such a member for one that
    /// an earlier attempt has removed.
    async fn are_members(&self, ids: &[u64]) -> Result<(), Status> {
        self.consensus
            .read_barrier(PEER_TIMEOUT)
            .await
            .map_err(|e| Status::unavailable(format!("the members are not known now: {e}")))?;
        let members = self.consensus.members();
        match ids.iter().find(|id| !members.iter().any(|member| member.id == **id)) {
            None => Ok(()),
            Some(id) => Err(Status::not_found(format!("no master has the id {id}: see `ephor members`"))),
        }
    }

    async fn status_of(&self, member: Member, request: StatusRequest) -> MasterStatus {
        let answer = if member.id == self.consensus.node_id() {
            self.local(&request).await
        } else {
            self.ask(&member, request).await
        };
        let mut status = answer.unwrap_or_else(|error| MasterStatus {
            error,
            alarms: wire_alarms(self.consensus.alarms_of(member.id)),
            ..MasterStatus::default()
        });
        status.member = Some(member);
        status
    }

    fn client(&self, member: &Member) -> Result<AdminClient<Channel>, String> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: PEER_TIMEOUT,
        };
        let channel = channel(self.network.clone(), &member.peer_address, options);
        channel.map(AdminClient::new).map_err(|e| e.to_string())
    }

    /// Asks the leader for its view of the members; `None` when it does not answer.
    async fn ask_leader(&self, leader: Option<u64>) -> Option<MembersResponse> {
        let leader = leader.filter(|id| *id != self.consensus.node_id())?;
        let member = wire_members(&self.consensus).into_iter().find(|m| m.id == leader)?;
        let mut request = Request::new(MembersRequest { local: true });
        request.set_timeout(PEER_TIMEOUT);
        let answer = self.client(&member).ok()?.members(request).await.ok()?.into_inner();
        answer.from_leader.then_some(answer)
    }

    async fn ask(&self, member: &Member, request: StatusRequest) -> Result<MasterStatus, String> {
        let mut request = Request::new(request);
        request.set_timeout(PEER_TIMEOUT);
        let answer = self.client(member)?.status(request).await.map_err(|s| s.message().to_owned())?;
        answer.into_inner().masters.into_iter().next().ok_or_else(|| "an empty answer".to_owned())
    }

    async fn local(&self, request: &StatusRequest) -> Result<MasterStatus, String> {
        let ends = self.certificates.expirations().into_iter().chain([self.api.service_account_key_end()]);
        let sizes = self.consensus.sizes().await.map_err(|error| error.to_string())?;
        let mut status = MasterStatus {
            alarms: wire_alarms(self.consensus.alarms()),
            log_bytes: self.consensus.status().log_bytes,
            objects_bytes: sizes.disk_bytes,
            free_bytes: self.consensus.free_bytes(),
            compacted_revision: sizes.compacted,
            watches: sizes.watches,
            revision: self.consensus.store().revision(),
            applied_index: self.consensus.applied_index(),
            term: self.consensus.leadership().borrow().term,
            objects: self.consensus.store().len() as u64,
            resident_bytes: resident_bytes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            autopilot: self.consensus.autopilot_actions().borrow().text.clone(),
            certificates: ends.map(wire_certificate).collect(),
            nodes: self.liveness.known_certificates(),
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

fn wire_alarms(alarms: Vec<Alarm>) -> Vec<WireAlarm> {
    alarms.into_iter().map(|it| WireAlarm { kind: it.kind, reason: it.reason, since: it.since }).collect()
}

fn wire_certificate((name, not_after): Expiration) -> Certificate {
    let not_after = not_after.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    Certificate { name: name.to_owned(), not_after: not_after.as_secs() }
}

/// Resident memory of this process in bytes; 0 when /proc does not say.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or_default() * 1024
}
