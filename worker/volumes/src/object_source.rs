//! Trait through which volumes get their API objects and tokens; the agent implements it with watches on the
//! API server.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::Error;

/// A request for a ServiceAccount token, as a `serviceAccountToken` projection makes it
/// (authentication.k8s.io/v1 TokenRequest).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRequest {
    /// Namespace of the pod and its ServiceAccount.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
    /// Intended audience; empty for the API server itself.
    pub audience: String,
    /// Requested lifetime in seconds.
    pub expiration_seconds: i64,
    /// Name of the pod to which the token is bound.
    pub pod_name: String,
    /// UID of that pod.
    pub pod_uid: String,
}

/// Source of API objects and tokens. `Ok(None)` means that the object is known not to exist.
#[async_trait]
pub trait ObjectSource: Send + Sync {
    /// Returns a ConfigMap.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Error>;
    /// Returns a Secret.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Error>;
    /// Returns a token for the pod's ServiceAccount, cached and renewed before it expires.
    async fn service_account_token(&self, request: &TokenRequest) -> Result<String, Error>;
}
