//! How the objects of one kind are listed and watched, whole or as metadata only. Made by `informers.rs` and the
//! garbage collector, driven by `informer.rs`; hands requests to the API.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use kube::api::{Api, DynamicObject, ListParams, ObjectList, PartialObjectMeta, WatchParams};
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

use crate::Error;

/// Objects that an informer can hold.
pub trait Object: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type ListFn<K> = Box<dyn Fn(ListParams) -> BoxFuture<Result<ObjectList<K>, kube::Error>> + Send + Sync>;
type WatchFn<K> = Box<dyn Fn(WatchParams, String) -> BoxFuture<Result<Events<K>, kube::Error>> + Send + Sync>;
type Events<K> = BoxStream<'static, Result<WatchEvent<K>, kube::Error>>;

/// Objects a list asks for at once.
const PAGE_SIZE: u32 = 2000;
/// A list page that takes longer has failed.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// A watch whose answer does not begin within this has failed.
const WATCH_DEADLINE: Duration = Duration::from_secs(10);
/// Seconds the server is asked to keep a watch open.
pub(crate) const WATCH_SECONDS: u32 = 290;

/// List and watch of one kind.
pub struct ListWatch<K: Clone> {
    list: ListFn<K>,
    watch: WatchFn<K>,
    field_selector: Option<String>,
}

impl<K: Object> ListWatch<K> {
    /// Whole objects through `api`.
    pub fn objects(api: Api<K>) -> Self {
        let (lister, watcher) = (api.clone(), api);
        Self {
            list: Box::new(move |params| {
                let api = lister.clone();
                Box::pin(async move { api.list(&params).await })
            }),
            watch: Box::new(move |params, from| {
                let api = watcher.clone();
                Box::pin(async move { Ok(api.watch(&params, &from).await?.boxed()) })
            }),
            field_selector: None,
        }
    }

    /// Only the objects a field selector accepts.
    pub fn fields(mut self, selector: &str) -> Self {
        self.field_selector = Some(selector.to_owned());
        self
    }

    /// All objects and the list's revision. With `consistent` the list holds every write acknowledged before the
    /// call; without, it is what this master's replica has.
    pub(crate) async fn list(&self, consistent: bool) -> Result<(Vec<K>, u64), Error> {
        let mut objects = Vec::new();
        let mut params = ListParams { field_selector: self.field_selector.clone(), ..ListParams::default() };
        if consistent {
            params = params.limit(PAGE_SIZE);
        } else {
            params = params.match_any();
        }
        loop {
            let page = tokio::time::timeout(LIST_DEADLINE, (self.list)(params.clone()))
                .await
                .map_err(|_| Error::Deadline)??;
            objects.extend(page.items);
            let revision = page.metadata.resource_version;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok((objects, parse_revision("list", revision.as_deref())?)),
            }
        }
    }

    /// Events after `revision`, with bookmarks.
    pub(crate) async fn watch(&self, revision: u64) -> Result<Events<K>, Error> {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.field_selector.clone_from(&self.field_selector);
        let started = (self.watch)(params, revision.to_string());
        Ok(tokio::time::timeout(WATCH_DEADLINE, started).await.map_err(|_| Error::Deadline)??)
    }
}

impl ListWatch<PartialObjectMeta<DynamicObject>> {
    /// Only the metadata of objects through `api`.
    pub fn metadata(api: Api<DynamicObject>) -> Self {
        let (lister, watcher) = (api.clone(), api);
        Self {
            list: Box::new(move |params| {
                let api = lister.clone();
                Box::pin(async move { api.list_metadata(&params).await })
            }),
            watch: Box::new(move |params, from| {
                let api = watcher.clone();
                Box::pin(async move { Ok(api.watch_metadata(&params, &from).await?.boxed()) })
            }),
            field_selector: None,
        }
    }
}

/// A resourceVersion as the number it is here.
pub(crate) fn parse_revision(what: &'static str, text: Option<&str>) -> Result<u64, Error> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Revision { what, found: text.map(str::to_owned) })
}
