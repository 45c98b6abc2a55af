//! Finds the API's resources by discovery. Used by the namespace controller and the garbage collector,
//! which work on every kind.

use kube::Client;
use kube::core::discovery::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// A resource whose objects can be listed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListableResource {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub deletable: bool,
    pub collection_deletable: bool,
    pub watchable: bool,
}

impl ListableResource {
    /// Returns the full name as clients write it: `pods.v1.` or `deployments.v1.apps`.
    pub fn full_name(&self) -> String {
        format!("{}.{}.{}", self.resource.plural, self.resource.version, self.resource.group)
    }
}

/// Returns all listable resources in their preferred versions, in order.
pub(crate) async fn discover(client: &Client) -> Result<Vec<ListableResource>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut kinds = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) {
                continue;
            }
            kinds.push(ListableResource {
                namespaced: capabilities.scope == Scope::Namespaced,
                deletable: capabilities.supports_operation(verbs::DELETE),
                collection_deletable: capabilities.supports_operation(verbs::DELETE_COLLECTION),
                watchable: capabilities.supports_operation(verbs::WATCH),
                resource,
            });
        }
    }
    kinds.sort_by(|left, right| {
        let order = |kind: &ListableResource| (kind.resource.group.clone(), kind.resource.plural.clone());
        order(left).cmp(&order(right))
    });
    Ok(kinds)
}
