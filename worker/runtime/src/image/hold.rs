//! Holds on the content of the image store: a blob or layer that running work holds is not collected. So
//! neither work nor collection has to wait for the other.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of holds on each blob (by digest) and layer (by name). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds(Arc<Mutex<BTreeMap<String, usize>>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a [`ContentHold`] for a piece of work, with no content yet.
    pub fn hold(&self) -> ContentHold {
        ContentHold { holds: self.clone(), names: Mutex::default() }
    }

    /// Runs `remove`, which must be short, unless `name` is held. No hold can be added while it runs.
    pub fn unless_held<T>(
        &self,
        name: &str,
        remove: impl FnOnce() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let holds = self.lock();
        match holds.contains_key(name) {
            true => Ok(None),
            false => remove(),
        }
    }
}

/// The content that one piece of work holds until this value is dropped.
#[derive(Debug)]
pub(crate) struct ContentHold {
    holds: Holds,
    names: Mutex<Vec<String>>,
}

impl ContentHold {
    /// Holds a blob or layer; call it before checking whether the content is stored.
    pub fn add(&self, name: &str) {
        *self.holds.lock().entry(name.to_owned()).or_default() += 1;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// Releases everything and returns the names that were held.
    pub fn release(self) -> Vec<String> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let names = std::mem::take(&mut *names);
        self.let_go(&names);
        names
    }

    fn let_go(&self, names: &[String]) {
        let mut holds = self.holds.lock();
        for name in names {
            if let Some(count) = holds.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    holds.remove(name);
                }
            }
        }
    }
}

impl Drop for ContentHold {
    fn drop(&mut self) {
        let names = std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner));
        self.let_go(&names);
    }
}
