//! The CRI server's state and its operations, one file per subject. [`Service`] implements the generated
//! traits (`runtime.rs`, `images.rs`) by calling these operations.

mod containers;
mod exec;
mod filter;
mod images;
mod launch_plan;
mod leftovers;
mod restore;
mod runtime;
mod sandboxes;
mod stats;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_cri::v1;
use tokio::sync::broadcast;
use tonic::Status;

use crate::cgroup::Hierarchies;
use crate::config::RuntimeConfig;
use crate::container::Container;
use crate::image::ImageStore;
use crate::network::SandboxNetwork;
use crate::paths::Paths;
use crate::sandbox::Sandbox;
use crate::streaming::StreamTickets;

/// Maximum number of events that a slow subscriber may lag behind before its stream ends.
const EVENTS: usize = 1024;

/// The runtime's state. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: RuntimeConfig,
    pub paths: Paths,
    pub images: ImageStore,
    pub network: Arc<dyn SandboxNetwork>,
    pub hierarchies: Hierarchies,
    pub streams: Arc<StreamTickets>,
    /// Held for reading while a sandbox is attached to the network, for writing while
    /// stale networks are released.
    attaching: tokio::sync::RwLock<()>,
    tables: Mutex<Tables>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

#[derive(Default)]
struct Tables {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Id of the pod or container that has each name, so that a repeated request does not create a second
    /// one.
    names: BTreeMap<String, String>,
}

impl std::ops::Deref for Service {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Service {
    pub fn new(
        config: RuntimeConfig,
        paths: Paths,
        images: ImageStore,
        network: Arc<dyn SandboxNetwork>,
        hierarchies: Hierarchies,
        streams: Arc<StreamTickets>,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS);
        let tables = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                config,
                paths,
                images,
                network,
                hierarchies,
                streams,
                attaching: tokio::sync::RwLock::default(),
                tables,
                events,
            }),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sandbox with that id, or with the only id that starts with it.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        let found = by_prefix(&self.tables().sandboxes, id);
        found.ok_or_else(|| {
            Status::not_found(format!("an error occurred when try to find sandbox \"{id}\": not found"))
        })
    }

    /// Returns the container with that id, or with the only id that starts with it.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        let found = by_prefix(&self.tables().containers, id);
        found.ok_or_else(|| {
            Status::not_found(format!("an error occurred when try to find container \"{id}\": not found"))
        })
    }

    fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.tables().sandboxes.values().cloned().collect()
    }

    fn containers(&self) -> Vec<Arc<Container>> {
        self.tables().containers.values().cloned().collect()
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.tables().containers.values().filter(|c| c.record.sandbox_id == sandbox).cloned().collect()
    }

    /// Returns the names of the image layers that containers' root file systems use.
    fn layers_in_use(&self) -> BTreeSet<String> {
        self.tables().containers.values().flat_map(|c| c.record.layers.iter().cloned()).collect()
    }

    /// Reserves a name for an id; fails if another id has it.
    fn reserve(&self, name: &str, id: &str) -> Result<(), Status> {
        let mut tables = self.tables();
        match tables.names.get(name) {
            Some(owner) if owner != id => Err(Status::already_exists(format!(
                "failed to reserve name \"{name}\": name \"{name}\" is reserved for \"{owner}\""
            ))),
            _ => {
                tables.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    fn release(&self, id: &str) {
        self.tables().names.retain(|_, owner| owner != id);
    }
}

fn by_prefix<T: Clone>(table: &BTreeMap<String, T>, id: &str) -> Option<T> {
    if id.is_empty() {
        return None;
    }
    if let Some(exact) = table.get(id) {
        return Some(exact.clone());
    }
    let mut matching = table.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let first = matching.next()?;
    if matching.next().is_some() { None } else { Some(first.1.clone()) }
}

/// Returns a new id: 32 random bytes in hexadecimal, as is usual in CRI.
fn new_id() -> String {
    use std::fmt::Write as _;
    let bytes: [u8; 32] = rand::random();
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns a closure for `map_err` that turns an error while doing `what` into a status of code Unknown.
fn internal<E: std::error::Error + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> Status {
    let what = what.into();
    move |error| Status::unknown(format!("{what}: {}", crate::files::chain(&error)))
}

/// Runs blocking work on a thread for such work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(internal("runtime task"))
}

#[cfg(test)]
mod tests;
