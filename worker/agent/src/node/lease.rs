//! The node's Lease in `kube-node-lease`: renewed slowly, for clients that read it. The masters' liveness
//! check does not depend on it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::debug;

use crate::Error;
use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(10);

/// Renews the Lease for ever, creating it if it does not exist.
pub async fn keep(context: &Context) {
    loop {
        let wait = match tokio::time::timeout(DEADLINE, renew(context)).await {
            Ok(Ok(())) => context.config.lease_period,
            Ok(Err(error)) => {
                debug!(%error, "lease not renewed");
                RETRY
            }
            Err(_) => RETRY,
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(context: &Context) -> Result<(), Error> {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), NAMESPACE);
    let name = &context.config.node_name;
    let now = MicroTime(jiff::Timestamp::now());
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error.into()),
    }
    let owner =
        context.node.borrow().as_ref().and_then(|node| node.metadata.uid.clone()).map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid,
            ..Default::default()
        });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: i32::try_from(context.config.lease_period.as_secs().saturating_mul(4))
                .ok(),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await?;
    Ok(())
}
