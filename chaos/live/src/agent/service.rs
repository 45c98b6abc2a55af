//! The agent's gRPC service: authorizes clients and passes requests on to `held`.

use std::sync::Arc;
use std::time::Duration;

use proto_env::grpc::PeerInfo;
use proto_wire::chaos::agent_server::Agent;
use proto_wire::chaos::{
    DescribeRequest, DescribeResponse, HeldFault, InjectRequest, InjectResponse, StartNodeRequest,
    StartNodeResponse, UndoRequest, UndoResponse, Undone,
};
use tonic::{Request, Response, Status};

use super::held::{Error, Faults};
use crate::effect::Effect;

/// Organization of the clients that may inject faults.
const OPERATORS: &str = "system:masters";
/// Maximum number of masters in a request to join.
const JOIN_MAX: usize = 16;

/// gRPC service of the agent.
pub struct Service {
    /// Faults that the service applies and undoes.
    pub faults: Arc<Faults>,
}

fn require_operator<T>(request: &Request<T>) -> Result<(), Status> {
    let peer = request.extensions().get::<PeerInfo>();
    if peer.is_some_and(|peer| peer.in_organization(OPERATORS)) {
        return Ok(());
    }
    Err(Status::permission_denied("only system:masters may break things"))
}

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        require_operator(&request)?;
        let describe = |held: super::journal::Held| {
            let effect_json =
                serde_json::to_string(&held.effect).map_err(|e| Status::internal(e.to_string()))?;
            let left_ms = u64::try_from(held.left().as_millis()).unwrap_or(u64::MAX);
            Ok::<_, Status>(HeldFault { id: held.id, effect_json, left_ms })
        };
        let faults = self.faults.list().await.into_iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Response::new(DescribeResponse { node: self.faults.node().name.clone(), faults }))
    }

    async fn inject(&self, request: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        require_operator(&request)?;
        let InjectRequest { id, effect_json, limit_ms } = request.into_inner();
        let effect: Effect = serde_json::from_str(&effect_json)
            .map_err(|error| Status::invalid_argument(format!("no effect this agent knows: {error}")))?;
        // Runs to its end, also if the client has disconnected.
        let faults = self.faults.clone();
        let limit = Duration::from_millis(limit_ms);
        let fired = tokio::spawn(async move { faults.inject(&id, effect, limit).await }).await;
        match fired.map_err(|error| Status::internal(error.to_string()))? {
            Ok(fired) => Ok(Response::new(InjectResponse { fired })),
            Err(Error::Refused(why)) => Err(Status::invalid_argument(why)),
            Err(Error::Failed(error)) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<UndoResponse>, Status> {
        require_operator(&request)?;
        let UndoRequest { ids, keep_down } = request.into_inner();
        let faults = self.faults.clone();
        let ended = tokio::spawn(async move { faults.undo(&ids, keep_down).await }).await;
        let ended = ended.map_err(|error| Status::internal(error.to_string()))?.into_iter();
        let undone =
            ended.map(|e| Undone { id: e.id, fired: e.fired, error: e.error.unwrap_or_default() }).collect();
        Ok(Response::new(UndoResponse { undone }))
    }

    async fn start_node(
        &self,
        request: Request<StartNodeRequest>,
    ) -> Result<Response<StartNodeResponse>, Status> {
        require_operator(&request)?;
        let StartNodeRequest { join, token } = request.into_inner();
        // The values become arguments of a command and must not be parsed as its options.
        if join.is_empty() || join.len() > JOIN_MAX || join.iter().any(|master| master.starts_with('-')) {
            return Err(Status::invalid_argument("name the masters to join, as HOST:PORT"));
        }
        if token.parse::<proto_wire::token::JoinToken>().is_err() {
            return Err(Status::invalid_argument("this is no join token"));
        }
        let started = self.faults.join(join, token).await;
        started.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(StartNodeResponse {}))
    }
}
