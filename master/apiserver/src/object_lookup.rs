//! What admission and authentication look up about the cluster's other objects. The registry implements this
//! trait; it keeps both modules independent of the registry, and lets tests act as a replica that lags.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto_api::status::Status;
use serde_json::Value;
use storage::Object;

use crate::settings::ClusterSettings;

/// Access to the cluster's objects and settings from one master's replica.
#[async_trait]
pub trait ObjectLookup: Send + Sync {
    /// Returns an object of the core group from the local replica; `None` where it is not there.
    fn core(&self, resource: &str, namespace: &str, name: &str) -> Option<Value>;

    /// Waits until the local replica holds every write that was acknowledged before the call.
    ///
    /// # Errors
    ///
    /// 503 without a quorum.
    async fn catch_up(&self) -> Result<(), Status>;

    /// Returns whether a read barrier was passed that began at most this long ago.
    fn caught_up_within(&self, age: Duration) -> bool;

    /// Returns the local replica's record of the keys of ServiceAccount tokens; `None` where it has none.
    fn signing_keys(&self) -> Option<Arc<Object>>;

    /// Returns the settings that all masters share.
    fn settings(&self) -> &ClusterSettings;

    /// Returns a random suffix for a generated name.
    fn suffix(&self, letters: usize) -> String;

    /// Returns the seconds since 1970, by this master's clock.
    fn unix_now(&self) -> i64;

    /// Returns an object as [`ObjectLookup::core`] does, but reports it missing only after the replica has
    /// caught up.
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
