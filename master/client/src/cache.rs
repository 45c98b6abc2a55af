//! The cache of the objects of one kind as last seen, with indexes. Written by `informer.rs` alone; read by
//! controllers and the scheduler. Everything is ordered, so that results computed from it do not depend on
//! hashing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Object, ObjectKey};

/// Function that computes the index values of an object.
pub(crate) type IndexFn<K> = fn(&K) -> Vec<String>;

/// A readable, ordered cache of one kind.
pub struct Cache<K> {
    indexers: Vec<(&'static str, IndexFn<K>)>,
    inner: RwLock<Inner<K>>,
}

struct Inner<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    /// Keys by index name and index value.
    indexes: BTreeMap<&'static str, BTreeMap<String, BTreeSet<ObjectKey>>>,
}

impl<K: Object> Cache<K> {
    pub(crate) fn new(indexers: Vec<(&'static str, IndexFn<K>)>) -> Self {
        Self { indexers, inner: RwLock::new(Inner { objects: BTreeMap::new(), indexes: BTreeMap::new() }) }
    }

    /// Returns the object with this key.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// Returns the object with this namespace and name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&ObjectKey::new(namespace, name))
    }

    /// Returns all objects in key order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    /// Returns all keys in order.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.read().objects.keys().cloned().collect()
    }

    /// Returns all objects of one namespace in name order.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        self.read()
            .objects
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Returns the objects whose index `index` holds `value`, in key order; none for an index that was not
    /// declared.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let Some(keys) = inner.indexes.get(index).and_then(|values| values.get(value)) else {
            return Vec::new();
        };
        keys.iter().filter_map(|key| inner.objects.get(key).cloned()).collect()
    }

    /// Number of objects in the cache.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether the cache holds no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn insert(&self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let mut inner = self.write();
        let old = inner.objects.insert(key.clone(), object.clone());
        self.reindex(&mut inner, &key, old.as_deref(), Some(&object));
        old
    }

    pub(crate) fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let mut inner = self.write();
        let old = inner.objects.remove(key);
        self.reindex(&mut inner, key, old.as_deref(), None);
        old
    }

    fn reindex(&self, inner: &mut Inner<K>, key: &ObjectKey, old: Option<&K>, new: Option<&K>) {
        for (name, index) in &self.indexers {
            let before = old.map(index).unwrap_or_default();
            let after = new.map(index).unwrap_or_default();
            if before == after {
                continue;
            }
            let values = inner.indexes.entry(name).or_default();
            for value in before {
                if let Some(keys) = values.get_mut(&value) {
                    keys.remove(key);
                    if keys.is_empty() {
                        values.remove(&value);
                    }
                }
            }
            for value in after {
                values.entry(value).or_default().insert(key.clone());
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
