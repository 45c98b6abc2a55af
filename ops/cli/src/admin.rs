//! The operator's client of the peer port: finds the masters through the API (or is
//! given the address of one) and calls the first that answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Purpose, TlsNetwork};
use proto_wire::cluster::MembersResponse;
use proto_wire::cluster::admin_client::AdminClient;
use tonic::transport::Channel;

/// The default peer port of masters.
pub const PEER_PORT: u16 = 6444;
/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline of a change: a little longer than the masters' own.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// Connects to the admin service of one master at `HOST:PORT`.
pub fn connect(kubeconfig: &Path, address: &str) -> Result<AdminClient<Channel>> {
    let network = TlsNetwork::new(&crate::kubeconfig::material(kubeconfig)?)?;
    let options = ChannelOptions {
        purpose: Purpose::Peer,
        organization: Some(MASTERS_ORGANIZATION),
        connect_timeout: Duration::from_secs(3),
    };
    Ok(AdminClient::new(channel(Arc::new(network), address, options)?))
}

/// Returns the peer addresses of the masters, from Service `default/kubernetes`; a
/// replica answers, so it works without a quorum too.
pub async fn masters(client: &Client) -> Result<Vec<String>> {
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
    let parameters = ListParams::default()
        .labels("kubernetes.io/service-name=kubernetes")
        .matching(kube::api::VersionMatch::NotOlderThan)
        .at("0");
    let list = slices.list(&parameters).await.context("asking the API for the masters")?;
    let addresses = list.items.into_iter().flat_map(|s| s.endpoints).flat_map(|e| e.addresses);
    Ok(addresses.map(|a| format!("{a}:{PEER_PORT}")).collect())
}

/// Connects to the admin service of the first master that answers.
pub async fn any(kubeconfig: &Path, address: Option<&str>) -> Result<AdminClient<Channel>> {
    let addresses = match address {
        Some(address) => vec![address.to_owned()],
        None => masters(&crate::kubeconfig::client(kubeconfig, None).await?).await?,
    };
    let mut last = None;
    for address in &addresses {
        let mut admin = connect(kubeconfig, address)?;
        let question = admin.members(with_deadline(proto_wire::cluster::MembersRequest { local: true }));
        match question.await {
            Ok(_) => return Ok(admin),
            Err(status) => last = Some(format!("{address}: {}", status.message())),
        }
    }
    bail!("no master answers ({})", last.unwrap_or_else(|| "none is known; give --address".into()))
}

/// Returns the members as the first master that answers knows them.
pub async fn members(client: &Client, kubeconfig: &Path) -> Result<MembersResponse> {
    for address in masters(client).await? {
        let mut admin = connect(kubeconfig, &address)?;
        if let Ok(answer) = admin.members(with_deadline(proto_wire::cluster::MembersRequest::default())).await
        {
            return Ok(answer.into_inner());
        }
    }
    bail!("no master answers")
}

/// Wraps a message in a request with a deadline.
pub fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Wraps a message in a request with the longer deadline of membership changes.
pub fn with_change_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CHANGE_TIMEOUT);
    request
}
