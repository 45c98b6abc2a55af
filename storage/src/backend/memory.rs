//! States in memory, for the simulation and for tests. Like a disk they lose unsynced data when the power
//! fails ([`MemoryHome::power_loss`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, Batch, Home, Table, Visitor};
use crate::{Error, Result};

type Records = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct State {
    written: Records,
    synced: Records,
}

/// One state in memory.
#[derive(Default)]
pub struct MemoryBackend {
    state: Mutex<State>,
}

/// A home of states in memory. Clones share the states, so that they outlive the store that uses them.
#[derive(Clone, Default)]
pub struct MemoryHome {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    current: String,
    states: BTreeMap<String, Arc<MemoryBackend>>,
    staged: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl MemoryBackend ===

impl Backend for MemoryBackend {
    fn load(&self, visit: Visitor<'_>) -> Result<()> {
        let records = lock(&self.state).written.clone();
        records.into_iter().try_for_each(|((table, key), value)| visit(table, &key, value))
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut state = lock(&self.state);
        for change in batch.changes {
            let key = (change.table, change.key);
            match change.value {
                Some(value) => drop(state.written.insert(key, value)),
                None => drop(state.written.remove(&key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.synced = state.written.clone();
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn retire(&self) {
        *lock(&self.state) = State::default();
    }
}

// === impl MemoryHome ===

impl MemoryHome {
    /// Drops all unsynced data, as a power cut does.
    pub fn power_loss(&self) {
        for backend in lock(&self.inner).states.values() {
            let mut state = lock(&backend.state);
            state.written = state.synced.clone();
        }
    }
}

impl Home for MemoryHome {
    fn open(&self) -> Result<Arc<dyn Backend>> {
        let mut inner = lock(&self.inner);
        let current = inner.current.clone();
        inner.states.retain(|name, _| *name == current);
        Ok(inner.states.entry(current).or_default().clone())
    }

    fn stage(&self) -> Result<(String, Arc<dyn Backend>)> {
        let mut inner = lock(&self.inner);
        inner.staged += 1;
        let name = format!("state-{}", inner.staged);
        let backend = Arc::new(MemoryBackend::default());
        inner.states.insert(name.clone(), backend.clone());
        Ok((name, backend))
    }

    fn adopt(&self, name: &str) -> Result<()> {
        let mut inner = lock(&self.inner);
        if !inner.states.contains_key(name) {
            return Err(Error::Damaged { what: "staged state", reason: format!("{name} does not exist") });
        }
        let replaced = std::mem::replace(&mut inner.current, name.to_owned());
        inner.states.remove(&replaced);
        Ok(())
    }
}
