//! What running work needs of the image store: a blob or layer that is held is not collected, so that nothing
//! has to wait for a collection, and a collection waits for nobody.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many hold each blob (by digest) or layer (by name). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds(Arc<Mutex<BTreeMap<String, usize>>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a piece of work, which holds nothing yet.
    pub fn hold(&self) -> Hold {
        Hold { holds: self.clone(), names: Mutex::default() }
    }

    /// Runs `remove`, which must be short, unless somebody holds `name`. Nobody takes hold of anything meanwhile.
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

/// What one piece of work holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    names: Mutex<Vec<String>>,
}

impl Hold {
    /// Takes hold of a blob or layer, before looking whether it is there.
    pub fn add(&self, name: &str) {
        *self.holds.lock().entry(name.to_owned()).or_default() += 1;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// Lets go of everything and returns the names.
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

impl Drop for Hold {
    fn drop(&mut self) {
        let names = std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner));
        self.let_go(&names);
    }
}
