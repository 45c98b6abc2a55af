//! TCP probes: healthy if a connection can be opened. Also gRPC health probes (grpc.health.v1).

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use super::worker::ProbeOutcome;

/// Probes once by opening a TCP connection within `timeout`.
pub async fn attempt(host: &str, port: u16, timeout: Duration) -> ProbeOutcome {
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => ProbeOutcome::Healthy,
        Ok(Err(error)) => ProbeOutcome::Failed(format!("dial tcp {host}:{port}: {error}")),
        Err(_) => ProbeOutcome::Failed(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Probes once by calling grpc.health.v1.Health/Check within `timeout`.
pub async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> ProbeOutcome {
    let check = async {
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| e.to_string())?;
        let channel =
            endpoint.connect().await.map_err(|e| format!("timeout: failed to connect service: {e}"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = client
            .unary(request, path, codec)
            .await
            .map_err(|s| format!("service unhealthy: {}", s.message()))?;
        Ok::<i32, String>(answer.into_inner().status)
    };
    match tokio::time::timeout(timeout, check).await {
        Ok(Ok(SERVING)) => ProbeOutcome::Healthy,
        Ok(Ok(status)) => ProbeOutcome::Failed(format!("service unhealthy (responded with {status})")),
        Ok(Err(message)) => ProbeOutcome::Failed(message),
        Err(_) => ProbeOutcome::Failed("timeout: health rpc did not complete".to_owned()),
    }
}
