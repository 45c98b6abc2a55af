//! What admission and authentication ask about the cluster's objects beside the one a request is about. The registry
//! answers; this seam keeps both from knowing it, and lets tests answer as a replica that lags.

use async_trait::async_trait;
use proto_api::status::Status;
use serde_json::Value;

use crate::settings::ClusterSettings;

/// The objects of the cluster as one master sees them.
#[async_trait]
pub trait Objects: Send + Sync {
    /// An object of the core group in the local replica; `None` where it is not there.
    fn core(&self, resource: &str, namespace: &str, name: &str) -> Option<Value>;

    /// Waits until the local replica holds every write acknowledged before.
    ///
    /// # Errors
    ///
    /// 503 without a quorum.
    async fn catch_up(&self) -> Result<(), Status>;

    /// Settings all masters share.
    fn settings(&self) -> &ClusterSettings;

    /// A random suffix for a generated name.
    fn suffix(&self, letters: usize) -> String;

    /// Seconds since 1970, by this master's clock.
    fn unix_now(&self) -> i64;

    /// As [`Objects::core`], but an object is called missing only by a replica that has caught up.
    ///
    /// # Errors
    ///
    /// 503 without a quorum.
    async fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        if let Some(found) = self.core(resource, namespace, name) {
            return Ok(Some(found));
        }
        self.catch_up().await?;
        Ok(self.core(resource, namespace, name))
    }
}
