//! Counters of a process that any folder may raise and `/metrics` shows, under the names of their metrics.
//! There is one set per process, because counters are raised in places that no handle reaches, such as the
//! panic hook. Only metrics read them, so no behaviour depends on them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Number of panics caught, by task.
pub static TASK_PANICS: Counter = Counter::new(
    "ephor_task_panics_total",
    "Panics of tasks, which were restarted or ended the process.",
    "task",
);

/// Number of object revisions that did not decode and were skipped, by resource.
pub static UNDECODABLE_OBJECTS: Counter = Counter::new(
    "ephor_undecodable_objects_total",
    "Revisions of objects that did not decode and were skipped.",
    "resource",
);

/// All counters.
pub static ALL: [&Counter; 2] = [&TASK_PANICS, &UNDECODABLE_OBJECTS];

/// A counter with one label.
#[derive(Debug)]
pub struct Counter {
    /// The metric's name.
    pub name: &'static str,
    /// The metric's description for people.
    pub help: &'static str,
    /// The name of the counter's label.
    pub label: &'static str,
    values: Mutex<BTreeMap<String, u64>>,
}

impl Counter {
    const fn new(name: &'static str, help: &'static str, label: &'static str) -> Self {
        Self { name, help, label, values: Mutex::new(BTreeMap::new()) }
    }

    /// Adds one to the count of a label value. Values come from code or from kinds, never directly from a
    /// client.
    pub fn add(&self, value: &str) {
        let mut values = self.lock();
        match values.get_mut(value) {
            Some(count) => *count += 1,
            None => drop(values.insert(value.to_owned(), 1)),
        }
    }

    /// Returns the count for one value of the label.
    pub fn get(&self, value: &str) -> u64 {
        self.lock().get(value).copied().unwrap_or_default()
    }

    /// Returns all values of the label with their counts, in order.
    pub fn values(&self) -> Vec<(String, u64)> {
        self.lock().iter().map(|(value, count)| (value.clone(), *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
