//! The context of every controller: the fenced client of this term, the warm caches, the clock, an
//! event recorder and the configuration. Created by `lib.rs` once per leadership.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Client, Resource};
use master_client::{Informers, Recorder};
use tokio_util::sync::CancellationToken;

use crate::Config;

/// Access to API, caches and configuration for a controller. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub informers: Informers,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
}

impl Context {
    /// Returns the wall-clock time.
    pub fn now(&self) -> Timestamp {
        Timestamp::try_from(self.config.clock.now()).unwrap_or_default()
    }

    /// Returns [`Context::now`] in whole seconds, as objects store it.
    pub fn time(&self) -> Time {
        Time(Timestamp::from_second(self.now().as_second()).unwrap_or_default())
    }

    /// Returns an API client for objects of one namespace.
    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Returns an API client for cluster-scoped objects, or for all namespaces.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Starts a recorder of events from `component`.
    pub fn recorder(&self, component: &'static str) -> Recorder {
        Recorder::start(self.client.clone(), component, self.config.clock.clone(), self.shutdown.clone())
    }
}
