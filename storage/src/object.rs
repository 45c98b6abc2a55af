//! A stored object at one revision, shared by the store, its history and all readers.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::Revision;

/// A key and its value at one revision. Immutable.
pub struct Object {
    /// The key.
    pub key: Arc<str>,
    /// The value, without the revision.
    pub value: Bytes,
    /// The revision at which the key was created.
    pub create_revision: Revision,
    /// The revision at which the key was last changed.
    pub mod_revision: Revision,
    derived: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Object {
    /// Makes an object without derived data.
    pub fn new(key: Arc<str>, value: Bytes, create_revision: Revision, mod_revision: Revision) -> Self {
        Self { key, value, create_revision, mod_revision, derived: OnceLock::new() }
    }

    /// Returns data that a reader derives from the value (parsed metadata, say). It is made once and kept
    /// as long as the object. Only the first requested type is kept; for any other type `init` runs each
    /// time.
    pub fn derived<T: Send + Sync + 'static>(&self, init: impl FnOnce(&Self) -> T) -> Arc<T> {
        let mut init = Some(init);
        let kept = self.derived.get_or_init(|| match init.take() {
            Some(init) => Arc::new(init(self)) as Arc<dyn Any + Send + Sync>,
            None => Arc::new(()),
        });
        match (Arc::clone(kept).downcast::<T>(), init) {
            (Ok(derived), _) => derived,
            (Err(_), Some(init)) => Arc::new(init(self)),
            // `init` ran above, so the kept value has type T.
            (Err(_), None) => unreachable!("what was just made has its own type"),
        }
    }

    /// Returns the approximate bytes of memory that the object takes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.key.len() + self.value.len() + 160
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_value_is_made_once_for_its_type() {
        let object = Object::new("/a".into(), Bytes::from_static(b"abc"), 1, 1);
        let first = object.derived(|object| object.value.len());
        let second = object.derived(|_| -> usize { unreachable!("made already") });
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*object.derived(|_| "other type".to_owned()), "other type");
    }
}
