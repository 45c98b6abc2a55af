//! Maintains the ConfigMap `kube-root-ca.crt` in every namespace: the cluster's CA, with which pods verify
//! the API. Keys are namespaces; a deleted or changed ConfigMap is restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use master_client::{HandlerGuard, ObjectKey, WorkQueue};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_already_exists, ignore_not_found, is_namespace_terminating, is_not_found};
use crate::namespace::is_active;

const NAME: &str = "kube-root-ca.crt";
const DATA_KEY: &str = "ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

pub(crate) struct RootCaController {
    context: Context,
}

impl RootCaController {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    fn wanted(&self, namespace: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(namespace.to_owned()),
                annotations: Some([(DESCRIPTION_KEY.to_owned(), DESCRIPTION.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA_KEY.to_owned(), self.context.config.cluster_ca.clone())])),
            ..ConfigMap::default()
        }
    }
}

#[async_trait]
impl Controller for RootCaController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn workers(&self) -> usize {
        2
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let namespaces = {
            let queue = queue.clone();
            self.context.informers.namespaces.add_handler(move |delta| {
                if let Some(namespace) = delta.new {
                    queue.add(ObjectKey::of(&**namespace));
                }
            })
        };
        let maps = {
            let queue = queue.clone();
            self.context.informers.root_ca_config_maps.add_handler(move |delta| {
                if let Some(map) = delta.object() {
                    queue.add(ObjectKey::new("", map.metadata.namespace.as_deref().unwrap_or_default()));
                }
            })
        };
        vec![namespaces, maps]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let informers = &self.context.informers;
        if !informers.namespaces.cache().get(key).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(Reconciled::Done);
        }
        let maps = self.context.namespaced::<ConfigMap>(&key.name);
        let wanted = self.wanted(&key.name);
        let Some(current) = informers.root_ca_config_maps.cache().find(&key.name, NAME) else {
            return match ignore_already_exists(maps.create(&PostParams::default(), &wanted).await) {
                Err(error) if is_namespace_terminating(&error) || is_not_found(&error) => {
                    Ok(Reconciled::Done)
                }
                result => Ok(result.map(|_| Reconciled::Done)?),
            };
        };
        if current.data != wanted.data {
            let mut updated = (*current).clone();
            updated.data = wanted.data;
            updated
                .metadata
                .annotations
                .get_or_insert_default()
                .extend(wanted.metadata.annotations.unwrap_or_default());
            ignore_not_found(maps.replace(NAME, &PostParams::default(), &updated).await)?;
        }
        Ok(Reconciled::Done)
    }
}
