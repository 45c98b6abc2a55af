//! The operator's side of the peer port: finds the masters through the API (or
//! is told where one is) and asks the first that answers.

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
/// How long one question may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change may take: a little longer than masters try.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// Opens the admin service of one master at `HOST:PORT`.
pub fn connect(kubeconfig: &Path, address: &str) -> Result<AdminClient<Channel>> {
    let network = TlsNetwork::new(&crate::kubeconfig::material(kubeconfig)?)?;
    let options = ChannelOptions {
        purpose: Purpose::Peer,
        organization: Some(MASTERS_ORGANIZATION),
        connect_timeout: Duration::from_secs(3),
    };
    Ok(AdminClient::new(channel(Arc::new(network), address, options)?))
}

/// The peer addresses of the masters, as Service `default/kubernetes` lists
/// them; answered from a replica, so it works without a quorum too.
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

/// The admin service of the first master that answers.
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

/// The members as any master sees them.
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

/// A request that does not wait for ever.
pub fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// A request to change the group of masters, which may take longer.
pub fn with_change_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CHANGE_TIMEOUT);
    request
}
