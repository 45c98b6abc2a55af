//! The objects that do not decode right now, for logs, metrics and `ephor status`. Written by readers of
//! lists and watches, read by `master/node`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto_env::counters::UNDECODABLE_OBJECTS;
use tokio::sync::watch;

use crate::Broken;

/// Maximum number of broken objects that are remembered by name; more are only counted in
/// [`BrokenObjects::total`].
const OBJECTS_MAX: usize = 1000;

/// Resource (such as `pods`), namespace and name of an object.
type Key = (String, String, String);

/// The objects that did not decode when they were last read. Cheap to clone; clones share their content.
#[derive(Clone, Debug)]
pub struct BrokenObjects(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The resourceVersion of each broken object, and the decoder's message.
    objects: Mutex<BTreeMap<Key, (String, String)>>,
    /// Number of object revisions that did not decode since the process started.
    total: watch::Sender<u64>,
}

impl Default for BrokenObjects {
    fn default() -> Self {
        Self(Arc::new(Shared { objects: Mutex::default(), total: watch::Sender::new(0) }))
    }
}

impl BrokenObjects {
    /// Remembers an object of `resource` that does not decode; logs and counts each of its revisions once.
    pub fn add(&self, resource: &str, broken: &Broken) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (namespace, name) = (text(&broken.meta.namespace), text(&broken.meta.name));
        let revision = text(&broken.meta.resource_version);
        let mut objects = self.objects();
        let key = (resource.to_owned(), namespace, name);
        if objects.get(&key).is_some_and(|(known, _)| *known == revision) {
            return;
        }
        let error = &broken.error;
        tracing::error!(
            resource,
            namespace = key.1,
            name = key.2,
            revision,
            error,
            "an object does not decode"
        );
        if objects.len() < OBJECTS_MAX || objects.contains_key(&key) {
            objects.insert(key, (revision, error.clone()));
        }
        drop(objects);
        UNDECODABLE_OBJECTS.add(resource);
        self.0.total.send_modify(|total| *total += 1);
    }

    /// Forgets an object that decodes again or was deleted.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut objects = self.objects();
        if objects.is_empty() {
            return;
        }
        let removed = objects.remove(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).is_some();
        drop(objects);
        if removed {
            tracing::info!(resource, namespace, name, "the object decodes again, or is gone");
            self.0.total.send_modify(|_| {});
        }
    }

    /// Forgets all objects of `resource` except those for which `present(namespace, name)` is true.
    pub fn retain(&self, resource: &str, present: impl Fn(&str, &str) -> bool) {
        let mut objects = self.objects();
        let before = objects.len();
        objects.retain(|(own, namespace, name), _| *own != resource || present(namespace, name));
        if objects.len() != before {
            self.0.total.send_modify(|_| {});
        }
    }

    /// Returns the number of object revisions that did not decode since the process started.
    pub fn total(&self) -> u64 {
        *self.0.total.borrow()
    }

    /// Returns the number of objects that do not decode now.
    pub fn len(&self) -> usize {
        self.objects().len()
    }

    /// Returns whether all objects decode.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns one line for an operator that names the first broken objects; `None` if all decode.
    pub fn summary(&self) -> Option<String> {
        const NAMED: usize = 3;
        let objects = self.objects();
        let mut parts: Vec<String> = Vec::new();
        for ((resource, namespace, name), (revision, error)) in objects.iter().take(NAMED) {
            let slash = if namespace.is_empty() { "" } else { "/" };
            parts.push(format!("{resource} {namespace}{slash}{name} at revision {revision} ({error})"));
        }
        if objects.len() > NAMED {
            parts.push(format!("and {} more", objects.len() - NAMED));
        }
        (!parts.is_empty()).then(|| format!("skipped, because they do not decode: {}", parts.join(", ")))
    }

    /// Watches for changes: notified whenever [`BrokenObjects::summary`] may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.total.subscribe()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, (String, String)>> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn broken(name: &str, revision: &str) -> Broken {
        let some = |text: &str| Some(text.to_owned());
        let meta = ObjectMeta {
            namespace: some("default"),
            name: some(name),
            resource_version: some(revision),
            ..ObjectMeta::default()
        };
        Broken { meta, error: "no".to_owned() }
    }

    #[test]
    fn each_revision_counts_once_and_a_mended_object_is_forgotten() {
        let objects = BrokenObjects::default();
        objects.add("pods", &broken("a", "1"));
        objects.add("pods", &broken("a", "1"));
        objects.add("pods", &broken("a", "2"));
        objects.add("nodes", &broken("b", "3"));
        assert_eq!((objects.total(), objects.len()), (3, 2));
        let expected = "skipped, because they do not decode: nodes default/b at revision 3 (no), \
                        pods default/a at revision 2 (no)";
        assert_eq!(objects.summary().as_deref(), Some(expected));
        objects.remove("pods", "default", "a");
        objects.retain("nodes", |_, name| name != "b");
        assert_eq!((objects.total(), objects.summary()), (3, None));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let objects = BrokenObjects::default();
        for number in 0..2 * OBJECTS_MAX {
            objects.add("pods", &broken(&number.to_string(), "1"));
        }
        assert_eq!(objects.len(), OBJECTS_MAX);
        assert_eq!(objects.total(), 2 * OBJECTS_MAX as u64);
        assert!(objects.summary().unwrap().ends_with("and 997 more"));
    }
}
