//! Caches ConfigMaps, Secrets and tokens for pods: one watch for each object that a running pod references,
//! as in kubelet. A change wakes the pods that use the object, so their volumes are updated within moments
//! without polling.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use proto_env::supervise::supervise;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use worker_volumes::{Error, ObjectSource, TokenRequest};

use crate::pod;
use crate::probes::Wake;

const DEADLINE: Duration = Duration::from_secs(10);
/// Time that a read waits for the watch after the API server has refused a direct read.
const SECOND_CHANCE: Duration = Duration::from_secs(2);

/// Latest state of a watched object: `None` before the first answer, `Some(None)` if it does not exist.
type LatestState<K> = Option<Option<Arc<K>>>;

struct Watched<K> {
    value: watch::Receiver<LatestState<K>>,
    users: Arc<Mutex<BTreeSet<String>>>,
    stop: CancellationToken,
}

/// Objects of one kind by (namespace, name).
type Table<K> = Mutex<BTreeMap<(String, String), Watched<K>>>;

/// Delay before a failed token renewal is retried.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// A token with its times of renewal and expiry.
#[derive(Clone, Debug)]
struct CachedToken {
    token: String,
    /// Time from which a new token is requested.
    renew_at: Instant,
    /// Time from which the API server no longer accepts the token.
    expires_at: Instant,
}

type Tokens = Mutex<BTreeMap<TokenRequest, CachedToken>>;

/// ConfigMaps, Secrets and tokens in use by the node's pods.
pub struct ObjectCache {
    client: Client,
    wake: Wake,
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
    tokens: Tokens,
    shutdown: CancellationToken,
}

impl ObjectCache {
    /// Creates an empty set; `wake` is called with the UIDs of pods whose objects changed.
    pub fn new(client: Client, wake: Wake, shutdown: CancellationToken) -> Self {
        Self {
            client,
            wake,
            config_maps: Table::default(),
            secrets: Table::default(),
            tokens: Tokens::default(),
            shutdown,
        }
    }

    /// Starts a watch for every ConfigMap and Secret the pod references; safe to call again after the pod
    /// changed.
    pub fn register(&self, pod: &Pod) {
        let (namespace, uid) = (pod::namespace(pod), pod::uid(pod));
        let references = references(pod);
        for name in references.config_maps {
            self.watch(&self.config_maps, namespace, &name, uid);
        }
        for name in references.secrets {
            self.watch(&self.secrets, namespace, &name, uid);
        }
    }

    /// Stops the watches that only this pod needed and drops its tokens.
    pub fn unregister(&self, uid: &str) {
        release(&self.config_maps, uid);
        release(&self.secrets, uid);
        lock(&self.tokens).retain(|request, _| request.pod_uid != uid);
    }

    /// Returns when the first of this pod's tokens is due for renewal; `None` if it has no tokens.
    pub fn next_renewal(&self, uid: &str) -> Option<Instant> {
        let tokens = lock(&self.tokens);
        let due =
            tokens.iter().filter(|(request, _)| request.pod_uid == uid).map(|(_, cached)| cached.renew_at);
        // A token due now is being renewed already, so the wake-up for it is put off.
        due.min().map(|at| at.max(Instant::now() + RENEWAL_RETRY / 2))
    }

    async fn renew(&self, request: &TokenRequest) -> Result<String, Error> {
        let answer = tokio::time::timeout(DEADLINE, request_token(&self.client, request)).await;
        let answer = answer.map_err(|_| no_token(request, "timed out".to_owned()))?;
        let answer = answer.map_err(|e| no_token(request, e.to_string()))?;
        let no_status = || no_token(request, "the answer holds no token".to_owned());
        let status = answer.status.ok_or_else(no_status)?;
        let seconds = status.expiration_timestamp.0.as_second() - crate::clock::now().0.as_second();
        let lifetime = Duration::from_secs(seconds.max(10).unsigned_abs());
        let now = Instant::now();
        // Due for renewal at 80 % of its lifetime, as in kubelet.
        let cached = CachedToken {
            token: status.token.clone(),
            renew_at: now + lifetime * 4 / 5,
            expires_at: now + lifetime,
        };
        lock(&self.tokens).insert(request.clone(), cached);
        Ok(status.token)
    }

    fn watch<K>(&self, table: &Table<K>, namespace: &str, name: &str, uid: &str)
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
        K::DynamicType: Default,
    {
        let mut table = lock(table);
        let entry = table.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| {
            let (sender, value) = watch::channel(None);
            let users = Arc::<Mutex<BTreeSet<String>>>::default();
            let stop = self.shutdown.child_token();
            let api = Api::<K>::namespaced(self.client.clone(), namespace);
            let (name, users, wake) = (name.to_owned(), users.clone(), self.wake.clone());
            let sender = Arc::new(sender);
            let follow = {
                let users = users.clone();
                supervise("agent-object-watch", move || {
                    follow(api.clone(), name.clone(), sender.clone(), users.clone(), wake.clone())
                })
            };
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! { biased; () = stopped.cancelled() => {}, () = follow => {} }
            });
            Watched { value, users, stop }
        });
        lock(&entry.users).insert(uid.to_owned());
    }

    async fn get<K>(
        &self,
        table: &Table<K>,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<K>>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let receiver = lock(table).get(&(namespace.to_owned(), name.to_owned())).map(|w| w.value.clone());
        let plain = fetch(Api::<K>::namespaced(self.client.clone(), namespace), kind, namespace, name);
        let Some(mut receiver) = receiver else { return plain.await };
        // Takes the first answer of watch and direct read: the watch may still be starting, or be refused
        // until the API server learns that the pod is bound to this node.
        let refused = tokio::select! {
            biased;
            seen = seen(&mut receiver) => match seen {
                Some(value) => return Ok(value),
                None => return Err(unreachable_object(kind, namespace, name, "the watch ended")),
            },
            object = plain => match object {
                Ok(object) => return Ok(object),
                Err(error) => error,
            },
        };
        match tokio::time::timeout(SECOND_CHANCE, seen(&mut receiver)).await {
            Ok(Some(value)) => Ok(value),
            _ => Err(refused),
        }
    }
}

/// Waits for the first answer of a watch; `None` if the watch has ended.
async fn seen<K>(receiver: &mut watch::Receiver<LatestState<K>>) -> Option<Option<Arc<K>>> {
    receiver.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone())
}

async fn fetch<K>(
    api: Api<K>,
    kind: &'static str,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<K>>, Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    match tokio::time::timeout(DEADLINE, api.get_opt(name)).await {
        Ok(Ok(object)) => Ok(object.map(Arc::new)),
        Ok(Err(error)) => Err(unreachable_object(kind, namespace, name, &error.to_string())),
        Err(_) => Err(unreachable_object(kind, namespace, name, "timed out")),
    }
}

fn unreachable_object(kind: &'static str, namespace: &str, name: &str, message: &str) -> Error {
    Error::Fetch { kind, namespace: namespace.to_owned(), name: name.to_owned(), message: message.to_owned() }
}

async fn follow<K>(
    api: Api<K>,
    name: String,
    sender: Arc<watch::Sender<LatestState<K>>>,
    users: Arc<Mutex<BTreeSet<String>>>,
    wake: Wake,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watcher::watch_object(api, &name).default_backoff();
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        match item {
            Ok(object) => {
                let first = sender.borrow().is_none();
                sender.send_replace(Some(object.map(Arc::new)));
                if !first {
                    let users: Vec<String> = lock(&users).iter().cloned().collect();
                    for uid in users {
                        wake(&uid);
                    }
                }
            }
            Err(error) => debug!(%error, name, "watching an object that pods reference"),
        }
    }
}

fn release<K>(table: &Table<K>, uid: &str) {
    lock(table).retain(|_, watched| {
        let mut users = lock(&watched.users);
        users.remove(uid);
        if users.is_empty() {
            watched.stop.cancel();
        }
        !users.is_empty()
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl ObjectSource for ObjectCache {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.get(&self.config_maps, "configmap", namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Error> {
        self.get(&self.secrets, "secret", namespace, name).await
    }

    /// Returns a service account token from the cache, renewed when due; if renewal fails, the old token
    /// while it is valid.
    async fn service_account_token(&self, request: &TokenRequest) -> Result<String, Error> {
        let cached = lock(&self.tokens).get(request).cloned();
        if let Some(cached) = cached
            && Instant::now() < cached.renew_at
        {
            if Instant::now() < cached.expires_at {
                return Ok(cached.token);
            }
            return Err(no_token(request, "the token expired and refresh failed".to_owned()));
        }
        let error = match self.renew(request).await {
            Ok(token) => return Ok(token),
            Err(error) => error,
        };
        let now = Instant::now();
        match lock(&self.tokens).get_mut(request) {
            Some(cached) => {
                cached.renew_at = now + RENEWAL_RETRY;
                if now < cached.expires_at {
                    debug!(%error, "a token could not be renewed; it is still valid");
                    return Ok(cached.token.clone());
                }
                Err(error)
            }
            None => Err(error),
        }
    }
}

fn no_token(request: &TokenRequest, message: String) -> Error {
    let (namespace, name) = (request.namespace.clone(), request.service_account.clone());
    Error::Fetch { kind: "token", namespace, name, message }
}

async fn request_token(
    client: &Client,
    request: &TokenRequest,
) -> Result<authentication::TokenRequest, kube::Error> {
    let audiences = if request.audience.is_empty() { Vec::new() } else { vec![request.audience.clone()] };
    let body = authentication::TokenRequest {
        spec: authentication::TokenRequestSpec {
            audiences,
            expiration_seconds: Some(request.expiration_seconds),
            bound_object_ref: Some(authentication::BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(request.pod_name.clone()),
                uid: Some(request.pod_uid.clone()),
            }),
        },
        ..Default::default()
    };
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(client.clone(), &request.namespace);
    accounts.create_subresource("token", &request.service_account, &PostParams::default(), &body).await
}

#[derive(Debug, Default, PartialEq, Eq)]
struct References {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

/// Collects the names of ConfigMaps and Secrets that the pod's volumes, environments and image pulls use.
fn references(pod: &Pod) -> References {
    let mut found = References::default();
    let spec = pod::spec(pod);
    for volume in spec.volumes.iter().flatten() {
        found.config_maps.extend(volume.config_map.iter().map(|s| s.name.clone()));
        found.secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            found.config_maps.extend(source.config_map.iter().map(|s| s.name.clone()));
            found.secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        }
    }
    found.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|s| s.name.clone()));
    let ephemeral = pod::ephemeral_containers(spec);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for container in containers.chain(&ephemeral) {
        for source in container.env_from.iter().flatten() {
            found.config_maps.extend(source.config_map_ref.iter().map(|s| s.name.clone()));
            found.secrets.extend(source.secret_ref.iter().map(|s| s.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            found.config_maps.extend(source.config_map_key_ref.iter().map(|s| s.name.clone()));
            found.secrets.extend(source.secret_key_ref.iter().map(|s| s.name.clone()));
        }
    }
    found
}
