//! History of a run, as its clients saw it and as the final replicas know it. The clients record it,
//! `oracle::check` judges it, and a failed run writes it as JSON next to its seed.
//!
//! Clients work on objects of a few kinds (`kind.rs`) through the Kubernetes API. A key is an object's kind and
//! name. A value is unique for every write of the whole run, so that it identifies the write that it came from. A revision is a
//! resourceVersion: one counter for the whole store, a new number for every change of any object
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>). Changes of other
//! objects leave gaps between the revisions in the history.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// A value and the revision of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// resourceVersion of the object at that change.
    pub revision: u64,
    /// Value that the change wrote.
    pub value: String,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// POST: creates the object only if the key is absent.
    Create {
        /// Key of the object.
        key: String,
        /// Value to write.
        value: String,
    },
    /// PUT with a resourceVersion: replaces the object only at that version (compare-and-swap).
    Update {
        /// Key of the object.
        key: String,
        /// Version that the client read; it sends its resourceVersion.
        expected: Versioned,
        /// Value to write.
        value: String,
    },
    /// DELETE, with or without a resourceVersion as precondition.
    Delete {
        /// Key of the object.
        key: String,
        /// Version whose resourceVersion is the precondition; `None` for no precondition.
        expected: Option<Versioned>,
    },
    /// PATCH (merge) without resourceVersion: changes any version of the object, if it exists.
    Patch {
        /// Key of the object.
        key: String,
        /// Value to write.
        value: String,
    },
    /// GET without resourceVersion: the most recent state.
    Get {
        /// Key of the object.
        key: String,
    },
    /// LIST without resourceVersion of all keys of a kind: the most recent state.
    List {
        /// Kind of the objects.
        kind: Kind,
    },
    /// LIST as pages with `continue`: all pages show the state of the first page.
    Pages {
        /// Kind of the objects.
        kind: Kind,
        /// Maximum number of objects in a page.
        limit: u32,
    },
    /// LIST with `resourceVersion=0`: any past state.
    ListAny {
        /// Kind of the objects.
        kind: Kind,
    },
}

impl Call {
    /// Returns the key of the call; `None` for a list.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Create { key, .. }
            | Self::Update { key, .. }
            | Self::Delete { key, .. }
            | Self::Patch { key, .. }
            | Self::Get { key } => Some(key),
            Self::List { .. } | Self::Pages { .. } | Self::ListAny { .. } => None,
        }
    }

    /// Returns the kind of the object, or of the listed objects.
    pub fn kind(&self) -> Kind {
        match self {
            Self::List { kind } | Self::Pages { kind, .. } | Self::ListAny { kind } => *kind,
            _ => self.key().map_or(Kind::default(), Kind::of),
        }
    }

    /// Returns whether the call is meant to change something.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Update { .. } | Self::Delete { .. } | Self::Patch { .. })
    }

    /// Returns the value of a create, an update or a patch; `None` for other calls.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Create { value, .. } | Self::Update { value, .. } | Self::Patch { value, .. } => {
                Some(value)
            }
            _ => None,
        }
    }
}

/// Reason why the object's state made a write fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// 409 AlreadyExists: a create of an existing object.
    AlreadyExists,
    /// 409 Conflict: the object exists and is not at the expected version.
    Conflict,
    /// 404 NotFound: an update or a delete of an object that does not exist.
    NotFound,
}

/// What a client knows of the outcome of its call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A create, an update or a patch took effect at this revision.
    Written {
        /// resourceVersion of the object in the answer.
        revision: u64,
    },
    /// A delete took effect.
    Deleted {
        /// Revision of the deletion; `None` if the answer did not have it.
        revision: Option<u64>,
    },
    /// The write was refused because of the object's state, and had no effect.
    Refused(Refusal),
    /// Object that a get found; `None` for 404.
    Read(Option<Versioned>),
    /// Objects that a list found.
    Listed {
        /// resourceVersion of the list, the revision of the store that it shows.
        revision: u64,
        /// All objects of the list, by key.
        objects: BTreeMap<String, Versioned>,
    },
    /// Objects that a list of any version found, which may be an earlier state.
    Shown {
        /// resourceVersion of the list, the revision of the store that it shows.
        revision: u64,
        /// All objects of the list, by key.
        objects: BTreeMap<String, Versioned>,
    },
    /// The call may have had an effect, or may still have one.
    Unknown,
    /// The call never had an effect and never will.
    NotEntered,
}

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Number of the client.
    pub client: usize,
    /// The client's request.
    pub call: Call,
    /// Time of the call, in simulated nanoseconds; a stamp of [`Stamps`].
    pub called: u64,
    /// Time of the answer; a stamp of [`Stamps`]. Without meaning for `Unknown` and `NotEntered`.
    pub returned: u64,
    /// Outcome of the call.
    pub outcome: Outcome,
}

impl Operation {
    /// Returns whether the operation may have changed the store.
    pub fn may_write(&self) -> bool {
        self.call.is_write() && !matches!(self.outcome, Outcome::Refused(_) | Outcome::NotEntered)
    }
}

/// Effect of a change on its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The object was created or modified (ADDED or MODIFIED).
    Put {
        /// Value after the change.
        value: String,
    },
    /// The object was deleted (DELETED).
    Deleted {
        /// Value before the deletion.
        value: String,
    },
}

impl Change {
    /// Returns the value that was put, or the last value of a deleted object.
    pub fn value(&self) -> &str {
        match self {
            Self::Put { value } | Self::Deleted { value } => value,
        }
    }

    /// Returns the object's value after the change; `None` if it was deleted.
    pub fn after(&self) -> Option<&str> {
        match self {
            Self::Put { value } => Some(value),
            Self::Deleted { .. } => None,
        }
    }
}

/// A change of an object, as in the store or in a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Revision of the change.
    pub revision: u64,
    /// Key of the object.
    pub key: String,
    /// Effect of the change.
    pub change: Change,
}

/// One watch request and all that it delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// resourceVersion of the request: events begin after exactly this revision.
    pub from: u64,
    /// Objects that the client listed at revision `from`; `None` if it did not list first.
    pub listed: Option<BTreeMap<String, Versioned>>,
    /// Events delivered, in order of arrival.
    pub events: Vec<Event>,
    /// Highest revision that the client has seen, bookmarks included; its next stream resumes there. At least
    /// `from`.
    pub reached: u64,
}

/// The watch of one client over all keys of a kind: its streams, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Number of the client.
    pub client: usize,
    /// Kind of the objects.
    pub kind: Kind,
    /// Streams of the client, in order.
    pub streams: Vec<Stream>,
}

/// All changes in their total order, as the final replicas know them, from revision 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// All changes of all keys, in the order of the store.
    pub events: Vec<Event>,
}

/// History of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// All calls of all clients, in any order; violations refer to them by index.
    pub operations: Vec<Operation>,
    /// Watches of all watching clients.
    pub watches: Vec<Watched>,
    /// Changes that the store really made.
    pub truth: Truth,
    /// Indexes of operations that read the final state of one replica each, after the last client had ended.
    /// `finals.rs` compares acknowledged writes with them.
    #[serde(default)]
    pub finals: Vec<usize>,
    /// Revision that the watches of the listed clients had to reach before the run ended; `None` if the run
    /// did not check that.
    #[serde(default)]
    pub closing: Option<Closing>,
}

/// Revision that every watch that was open at the end had to reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// Revision of all replicas after the last client had ended.
    pub revision: u64,
    /// Watching clients that had time to reach that revision.
    pub clients: Vec<usize>,
}

/// Assigns stamps to the moments of a history. Simulated time stands still while tasks run, so a client's
/// answer and its next call would have the same nanosecond and count as concurrent. A stamp is the simulated
/// time, or one more than the last stamp, so that the order of stamps is the order of events. One instance
/// serves a whole run.
#[derive(Clone, Debug, Default)]
pub struct Stamps {
    last: u64,
}

impl Stamps {
    /// Returns the stamp of an event that happens at simulated nanosecond `now`.
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
            Self::Pages { kind, limit } => write!(f, "list {kind:?}s in pages of {limit}"),
            Self::ListAny { kind } => write!(f, "list any version of {kind:?}s"),
            Self::Get { key } => write!(f, "get {key}"),
            Self::List { kind } => write!(f, "list {kind:?}s"),
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
                Operation {
                    client: 1,
                    call: Call::List { kind: Kind::Secret },
                    called: 2,
                    returned: 3,
                    outcome,
                },
            ],
            watches: vec![Watched { client: 2, kind: Kind::Secret, streams: vec![stream] }],
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
