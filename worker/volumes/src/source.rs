//! What volumes are made of comes through this trait; the agent implements it over watches on the API server.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::Error;

/// What a `serviceAccountToken` projection asks for (authentication.k8s.io/v1 TokenRequest).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRequest {
    /// Namespace of the pod and its ServiceAccount.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// Intended audience; empty means the API server's own.
    pub audience: String,
    /// Wanted lifetime in seconds.
    pub expiration_seconds: i64,
    /// The pod the token is bound to.
    pub pod_name: String,
    /// Its UID.
    pub pod_uid: String,
}

/// Objects and tokens by name. `Ok(None)` says that the object certainly does not exist.
#[async_trait]
pub trait ObjectSource: Send + Sync {
    /// A ConfigMap of the pod's namespace.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Error>;
    /// A Secret of the pod's namespace.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Error>;
    /// A token for the pod's ServiceAccount, cached and renewed before it expires.
    async fn service_account_token(&self, request: &TokenRequest) -> Result<String, Error>;
}
