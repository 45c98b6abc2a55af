//! Maintains the ServiceAccount `default` of every namespace. Keys are namespaces; a deleted account is
//! restored.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use master_client::{HandlerGuard, ObjectKey, WorkQueue};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_already_exists, is_namespace_terminating, is_not_found};
use crate::namespace::is_active;

const NAME: &str = "default";

pub(crate) struct ServiceAccountController {
    context: Context,
}

impl ServiceAccountController {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[async_trait]
impl Controller for ServiceAccountController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "serviceaccount"
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
        let accounts = {
            let queue = queue.clone();
            self.context.informers.service_accounts.add_handler(move |delta| {
                if let (Some(account), None) = (delta.old, delta.new) {
                    queue.add(ObjectKey::new("", account.metadata.namespace.as_deref().unwrap_or_default()));
                }
            })
        };
        vec![namespaces, accounts]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let informers = &self.context.informers;
        let active = informers.namespaces.cache().get(key).is_some_and(|namespace| is_active(&namespace));
        if !active || informers.service_accounts.cache().find(&key.name, NAME).is_some() {
            return Ok(Reconciled::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let accounts = self.context.namespaced::<ServiceAccount>(&key.name);
        match ignore_already_exists(accounts.create(&PostParams::default(), &account).await) {
            Err(error) if is_namespace_terminating(&error) || is_not_found(&error) => Ok(Reconciled::Done),
            result => Ok(result.map(|_| Reconciled::Done)?),
        }
    }
}
