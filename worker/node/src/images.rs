//! The image service of a node for operators (`ephor image load --all-nodes`): makes the embedded runtime's
//! image service reachable over mutual TLS.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use proto_env::Network;
use proto_env::grpc::{PeerInfo, incoming};
use proto_wire::image::images_client::ImagesClient;
use proto_wire::image::images_server::{Images, ImagesServer};
use proto_wire::image::{ListRequest, ListResponse, LoadRequest, LoadResponse, PullProgress, PullRequest};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Reasons why the service has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port cannot be opened.
    #[error("listening for operators: {0}")]
    Listen(#[from] std::io::Error),
    /// The gRPC server has failed.
    #[error("serving operators: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves operators until `shutdown`. `address` is `HOST:PORT`.
pub async fn serve(
    network: Arc<dyn Network>,
    address: &str,
    socket: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let listener = network.listen(address).await?;
    Server::builder()
        .add_service(ImagesServer::new(Relay { socket }))
        .serve_with_incoming_shutdown(incoming(listener), shutdown.cancelled_owned())
        .await?;
    Ok(())
}

/// Relays requests of operators to the runtime.
struct Relay {
    /// Path of the runtime's unix socket.
    socket: PathBuf,
}

impl Relay {
    fn runtime<T>(&self, request: &Request<T>) -> Result<ImagesClient<Channel>, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        if !peer.is_some_and(|p| p.in_organization("system:masters")) {
            return Err(Status::permission_denied("only system:masters may load images"));
        }
        let socket = self.socket.clone();
        let channel = Endpoint::from_static("http://runtime").connect_with_connector_lazy(tower::service_fn(
            move |_| {
                let socket = socket.clone();
                async move {
                    Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?))
                }
            },
        ));
        Ok(ImagesClient::new(channel))
    }
}

#[tonic::async_trait]
impl Images for Relay {
    async fn load(&self, request: Request<Streaming<LoadRequest>>) -> Result<Response<LoadResponse>, Status> {
        let mut runtime = self.runtime(&request)?;
        // Upload errors are returned to the operator: a broken upload must not look like a short archive.
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut upload = request.into_inner();
        let feed = tokio::spawn(async move {
            while let Some(chunk) = upload.next().await.transpose()? {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok::<_, Status>(())
        });
        let answer = runtime.load(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
        feed.await.map_err(|e| Status::internal(e.to_string()))??;
        answer
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.runtime(&request)?.list(request.into_inner()).await
    }

    type PullStream = Pin<Box<dyn Stream<Item = Result<PullProgress, Status>> + Send>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let answer = self.runtime(&request)?.pull(request.into_inner()).await?;
        Ok(Response::new(Box::pin(answer.into_inner())))
    }
}
