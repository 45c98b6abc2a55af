//! What a simulated run did, as its clients saw it and as the final replicas
//! know it. The workload of the simulation records it, `oracle::check` judges
//! it, and a failed run writes it out as JSON next to its seed.
//!
//! Clients work on ConfigMaps through the Kubernetes API. A key is an object's
//! name; a value is unique for every write of the whole run, so that a value
//! names the write it came from; a revision is a resourceVersion: one counter
//! for the whole store, a new number for every change of any object
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).
//! Changes of objects outside the workload leave gaps in the revisions seen here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A value and the revision of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// resourceVersion of the object.
    pub revision: u64,
    /// Its value.
    pub value: String,
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// POST: only if the key is absent.
    Create {
        /// Name of the object.
        key: String,
        /// What to write.
        value: String,
    },
    /// PUT with a resourceVersion: compare-and-swap.
    Update {
        /// Name of the object.
        key: String,
        /// What the client read, and the resourceVersion it sends.
        expected: Versioned,
        /// What to write.
        value: String,
    },
    /// DELETE, with a resourceVersion as precondition or without any.
    Delete {
        /// Name of the object.
        key: String,
        /// The precondition.
        expected: Option<Versioned>,
    },
    /// PATCH (merge) without resourceVersion: whatever is there, if anything is.
    Patch {
        /// Name of the object.
        key: String,
        /// What to write.
        value: String,
    },
    /// GET without resourceVersion: the most recent state.
    Get {
        /// Name of the object.
        key: String,
    },
    /// LIST without resourceVersion of all keys: the most recent state.
    List,
    /// The same in pages, with `continue`: all of the state that the first page shows.
    Pages {
        /// Objects in a page.
        limit: u32,
    },
    /// LIST with `resourceVersion=0`: any state there was.
    ListAny,
}

impl Call {
    /// The key it is about; none for a list.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Create { key, .. }
            | Self::Update { key, .. }
            | Self::Delete { key, .. }
            | Self::Patch { key, .. }
            | Self::Get { key } => Some(key),
            Self::List | Self::Pages { .. } | Self::ListAny => None,
        }
    }

    /// Whether it is meant to change something.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Update { .. } | Self::Delete { .. } | Self::Patch { .. })
    }

    /// The value it would write: that of a create, an update or a patch.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Create { value, .. } | Self::Update { value, .. } | Self::Patch { value, .. } => {
                Some(value)
            }
            _ => None,
        }
    }
}

/// Why a write was refused by the state of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// 409 AlreadyExists: a create of what exists.
    AlreadyExists,
    /// 409 Conflict: the object exists and is not the expected version.
    Conflict,
    /// 404 NotFound: an update or a delete of what does not exist.
    NotFound,
}

/// What a client knows of how its call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A create, an update or a patch took effect at this revision.
    Written {
        /// resourceVersion of the answered object.
        revision: u64,
    },
    /// A delete took effect.
    Deleted {
        /// Revision of the deletion, where the answer told it.
        revision: Option<u64>,
    },
    /// The state of the object forbade the write, which had no effect.
    Refused(Refusal),
    /// What a get found; `None` for 404.
    Read(Option<Versioned>),
    /// What a list found.
    Listed {
        /// resourceVersion of the list: the state of the store it shows.
        revision: u64,
        /// All objects, by key.
        objects: BTreeMap<String, Versioned>,
    },
    /// What a list found that may show an earlier state.
    Shown {
        /// resourceVersion of the list: the state of the store it shows.
        revision: u64,
        /// All objects, by key.
        objects: BTreeMap<String, Versioned>,
    },
    /// It may have happened, or may happen yet.
    Unknown,
    /// It never happened and never will.
    NotEntered,
}

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who called.
    pub client: usize,
    /// What was asked for.
    pub call: Call,
    /// When, in simulated nanoseconds; a number of `Stamps`.
    pub called: u64,
    /// When the answer came; a number of `Stamps`. Without meaning for `Unknown`
    /// and `NotEntered`.
    pub returned: u64,
    /// What it came to.
    pub outcome: Outcome,
}

impl Operation {
    /// Whether it may have changed the store.
    pub fn may_write(&self) -> bool {
        self.call.is_write() && !matches!(self.outcome, Outcome::Refused(_) | Outcome::NotEntered)
    }
}

/// What a change did to its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// ADDED or MODIFIED.
    Put {
        /// The value from here on.
        value: String,
    },
    /// DELETED.
    Deleted {
        /// The last value.
        value: String,
    },
}

impl Change {
    /// The value put, or the last one of what was deleted.
    pub fn value(&self) -> &str {
        match self {
            Self::Put { value } | Self::Deleted { value } => value,
        }
    }

    /// The value there is after it.
    pub fn after(&self) -> Option<&str> {
        match self {
            Self::Put { value } => Some(value),
            Self::Deleted { .. } => None,
        }
    }
}

/// A change of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Revision of the change.
    pub revision: u64,
    /// Name of the object.
    pub key: String,
    /// What it did.
    pub change: Change,
}

/// One watch request and all that came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The resourceVersion asked for: events begin after exactly this revision.
    pub from: u64,
    /// What the client listed at revision `from`, where it had to list first.
    pub listed: Option<BTreeMap<String, Versioned>>,
    /// What was delivered, in order of arrival.
    pub events: Vec<Event>,
    /// Highest revision the client takes as seen, bookmarks included: where its
    /// next stream resumes. At least `from`.
    pub reached: u64,
}

/// The watch of one client over all keys: its streams, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Who watched.
    pub client: usize,
    /// Its streams in order.
    pub streams: Vec<Stream>,
}

/// The total order of all changes as the final replicas know it, from revision 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// All changes of all keys.
    pub events: Vec<Event>,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// All calls of all clients, in any order; a violation names them by index.
    pub operations: Vec<Operation>,
    /// All watches.
    pub watches: Vec<Watched>,
    /// What really happened.
    pub truth: Truth,
    /// The numbers of those operations that read the final state of one replica each, when no client
    /// worked any more. `finals.rs` holds what was acknowledged against them.
    #[serde(default)]
    pub finals: Vec<usize>,
    /// The revision that every watch listed here had to reach before the run ended.
    #[serde(default)]
    pub closing: Option<Closing>,
}

/// What every watch that was open at the end had to deliver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The revision of all replicas once no client worked any more.
    pub revision: u64,
    /// The watching clients that had time to reach it.
    pub clients: Vec<usize>,
}

/// Gives the moments of a history their numbers. Simulated time stands still
/// while tasks run, so that a client's answer and its next call would carry the
/// same nanosecond and count as concurrent; a stamp is the simulated time, or one
/// more than the last stamp, so that the order of stamps is the order of events.
/// One instance serves a whole run.
#[derive(Clone, Debug, Default)]
pub struct Stamps {
    last: u64,
}

impl Stamps {
    /// The stamp for something that happens now, at this simulated nanosecond.
    pub fn next(&mut self, now: u64) -> u64 {
        self.last = now.max(self.last.saturating_add(1));
        self.last
    }
}

impl fmt::Display for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{}", self.value, self.revision)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { key, value } => write!(f, "create {key} {value:?}"),
            Self::Update { key, expected, value } => write!(f, "update {key} {expected} to {value:?}"),
            Self::Delete { key, expected: Some(expected) } => write!(f, "delete {key} {expected}"),
            Self::Delete { key, expected: None } => write!(f, "delete {key}"),
            Self::Patch { key, value } => write!(f, "patch {key} to {value:?}"),
            Self::Pages { limit } => write!(f, "list in pages of {limit}"),
            Self::ListAny => write!(f, "list any version"),
            Self::Get { key } => write!(f, "get {key}"),
            Self::List => write!(f, "list"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written { revision } => write!(f, "written at {revision}"),
            Self::Deleted { revision: Some(revision) } => write!(f, "deleted at {revision}"),
            Self::Deleted { revision: None } => write!(f, "deleted"),
            Self::Refused(refusal) => write!(f, "refused: {refusal:?}"),
            Self::Read(Some(found)) => write!(f, "read {found}"),
            Self::Read(None) => write!(f, "read nothing"),
            Self::Listed { revision, objects } => write!(f, "listed {} objects at {revision}", objects.len()),
            Self::Shown { revision, objects } => write!(f, "shown {} objects at {revision}", objects.len()),
            Self::Unknown => write!(f, "unknown"),
            Self::NotEntered => write!(f, "not entered"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, call, called, returned, outcome } = self;
        write!(f, "client {client}: {call} -> {outcome} [{called}..")?;
        match outcome {
            Outcome::Unknown | Outcome::NotEntered => write!(f, "]"),
            _ => write!(f, "{returned}]"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.change {
            Change::Put { .. } => "put",
            Change::Deleted { .. } => "deletion of",
        };
        write!(f, "{what} {} {:?}@{}", self.key, self.change.value(), self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_time_and_never_tie() {
        let mut stamps = Stamps::default();
        let given: Vec<u64> = [5, 5, 5, 6, 20, 3].into_iter().map(|now| stamps.next(now)).collect();
        assert_eq!(given, [5, 6, 7, 8, 20, 21]);
    }

    #[test]
    fn a_history_survives_json() {
        let version = Versioned { revision: 1, value: "v".into() };
        let call = Call::Update { key: "a".into(), expected: version.clone(), value: "w".into() };
        let outcome = Outcome::Listed { revision: 3, objects: BTreeMap::from([("a".into(), version)]) };
        let event = Event { revision: 1, key: "a".into(), change: Change::Put { value: "v".into() } };
        let stream = Stream { from: 0, listed: None, events: vec![event.clone()], reached: 1 };
        let history = History {
            operations: vec![
                Operation { client: 0, call, called: 1, returned: 0, outcome: Outcome::Unknown },
                Operation { client: 1, call: Call::List, called: 2, returned: 3, outcome },
            ],
            watches: vec![Watched { client: 2, streams: vec![stream] }],
            truth: Truth { events: vec![event] },
            finals: vec![1],
            closing: Some(Closing { revision: 1, clients: vec![2] }),
        };
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }

    #[test]
    fn an_operation_reads_as_one_line() {
        let call = Call::Create { key: "a".into(), value: "v".into() };
        let mut operation =
            Operation { client: 4, call, called: 1, returned: 9, outcome: Outcome::Written { revision: 7 } };
        assert_eq!(operation.to_string(), "client 4: create a \"v\" -> written at 7 [1..9]");
        operation.outcome = Outcome::Unknown;
        assert_eq!(operation.to_string(), "client 4: create a \"v\" -> unknown [1..]");
    }
}
