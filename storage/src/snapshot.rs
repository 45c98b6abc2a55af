//! Snapshots: the whole replicated state as a stream of frames. A [`SnapshotView`] is taken at once,
//! because it shares the objects, and its frames are made one at a time. A [`Staging`] writes received
//! frames to a new state on disk beside the current one, and `Store::install` then switches to it at once.
//! `consensus/network` carries the frames.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Batch, Home};
use crate::recent_outcomes::{Outcomes, RecentOutcomes};
use crate::store::records::{self, StateRecord};
use crate::{Error, Fingerprint, Object, Result, Revision, codec};

/// Approximate maximum bytes of objects in a frame, or one larger object.
const FRAME_BYTES: usize = 512 * 1024;
/// Maximum number of proposals' outcomes in a frame.
const FRAME_OUTCOMES: usize = 8_192;
pub(crate) const FORMAT: u32 = 2;

/// The replicated state at one applied log entry.
pub struct SnapshotView {
    pub(crate) revision: Revision,
    pub(crate) forgotten: u64,
    pub(crate) applied: Vec<u8>,
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) recent: Vec<(u64, Outcomes)>,
    pub(crate) index: u64,
    pub(crate) fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum SnapshotFrame {
    Head { format: u32, state: StateRecord },
    Objects(Vec<Record>),
    Recent(Vec<(u64, Outcomes)>),
    End { objects: u64, digest: [u8; 32] },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
    pub(crate) value: Bytes,
}

/// A state in progress, into which a snapshot is received.
pub struct Staging {
    home: Arc<dyn Home>,
    name: Option<String>,
    backend: Arc<dyn Backend>,
    head: Option<StateRecord>,
    /// The fingerprint of the records received so far.
    fingerprint: Fingerprint,
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    recent: Vec<(u64, Outcomes)>,
    hasher: blake3::Hasher,
    complete: bool,
}

/// A complete, durable state that waits to be installed.
pub struct Staged {
    pub(crate) staging: Staging,
    pub(crate) revision: Revision,
    pub(crate) applied: Vec<u8>,
}

/// The parts of a received state that has become the current one.
pub(crate) struct Adopted {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) objects: BTreeMap<Arc<str>, Arc<Object>>,
    pub(crate) recent: RecentOutcomes,
    pub(crate) state: StateRecord,
}

/// Adds an object to a digest.
pub(crate) fn digest_object(hasher: &mut blake3::Hasher, object: &Object) {
    for part in [object.key.as_bytes(), &object.value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(&object.create_revision.to_le_bytes());
    hasher.update(&object.mod_revision.to_le_bytes());
}

// === impl SnapshotView ===

impl SnapshotView {
    /// Returns the view's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns what the consensus stored beside the state when the view was taken.
    pub fn applied(&self) -> &[u8] {
        &self.applied
    }

    /// Returns the number of objects.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Returns the frames, each made when it is asked for.
    pub fn frames(&self) -> impl Iterator<Item = Result<Bytes>> + Send + '_ {
        let state = StateRecord {
            revision: self.revision,
            forgotten: self.forgotten,
            applied: self.applied.clone(),
            index: self.index,
            fingerprint: self.fingerprint,
        };
        let head = SnapshotFrame::Head { format: FORMAT, state };
        let mut hasher = blake3::Hasher::new();
        let mut objects = self.objects.iter().peekable();
        let mut recent = self.recent.chunks(64).peekable();
        let mut head = Some(head);
        let mut ended = false;
        std::iter::from_fn(move || {
            let frame = if let Some(head) = head.take() {
                head
            } else if objects.peek().is_some() {
                SnapshotFrame::Objects(next_objects(&mut objects, &mut hasher))
            } else if recent.peek().is_some() {
                let mut chunk: Vec<(u64, Outcomes)> = Vec::new();
                let mut outcomes = 0;
                while let Some(more) = recent.next_if(|_| outcomes < FRAME_OUTCOMES) {
                    outcomes += more.iter().map(|(_, outcomes)| outcomes.len()).sum::<usize>();
                    chunk.extend_from_slice(more);
                }
                SnapshotFrame::Recent(chunk)
            } else if !ended {
                ended = true;
                SnapshotFrame::End {
                    objects: self.objects.len() as u64,
                    digest: *hasher.finalize().as_bytes(),
                }
            } else {
                return None;
            };
            Some(codec::encode("snapshot frame", &frame).map(Bytes::from))
        })
    }
}

fn next_objects<'a>(
    objects: &mut std::iter::Peekable<impl Iterator<Item = &'a Arc<Object>>>,
    hasher: &mut blake3::Hasher,
) -> Vec<Record> {
    let mut frame = Vec::new();
    let mut size = 0;
    while let Some(object) =
        objects.next_if(|object| frame.is_empty() || size + object.size_bytes() <= FRAME_BYTES)
    {
        size += object.size_bytes();
        digest_object(hasher, object);
        frame.push(Record {
            key: object.key.to_string(),
            create_revision: object.create_revision,
            mod_revision: object.mod_revision,
            value: object.value.clone(),
        });
    }
    frame
}

// === impl Staging ===

impl Staging {
    pub(crate) fn new(home: Arc<dyn Home>) -> Result<Self> {
        let (name, backend) = home.stage()?;
        Ok(Self {
            home,
            name: Some(name),
            backend,
            head: None,
            fingerprint: Fingerprint::default(),
            objects: BTreeMap::new(),
            recent: Vec::new(),
            hasher: blake3::Hasher::new(),
            complete: false,
        })
    }

    /// Receives the next frame.
    pub fn push(&mut self, frame: &[u8]) -> Result<()> {
        let damaged = |reason: &str| Error::Damaged { what: "snapshot", reason: reason.to_owned() };
        let frame = codec::decode("snapshot frame", frame)?;
        if self.complete {
            return Err(damaged("frames follow its end"));
        }
        match frame {
            SnapshotFrame::Head { format, state } => {
                if format != FORMAT || self.head.is_some() {
                    return Err(damaged("an unknown format, or a second head"));
                }
                self.head = Some(state);
            }
            _ if self.head.is_none() => return Err(damaged("it does not begin with its head")),
            SnapshotFrame::Objects(objects) => self.take_objects(objects)?,
            SnapshotFrame::Recent(recent) => {
                let mut batch = Batch::default();
                for (index, outcomes) in &recent {
                    self.fingerprint.add_outcomes(*index, outcomes)?;
                    records::put_recent(&mut batch, *index, outcomes)?;
                }
                self.backend.write(batch)?;
                self.recent.extend(recent);
            }
            SnapshotFrame::End { objects, digest } => {
                if objects != self.objects.len() as u64 || digest != *self.hasher.finalize().as_bytes() {
                    return Err(damaged("its content does not match its digest"));
                }
                // The fingerprint was kept up to date by the sender's writes, so it also shows damage to
                // the sender's memory.
                if self.head.as_ref().is_none_or(|state| state.fingerprint != self.fingerprint) {
                    return Err(damaged("its records do not add up to its sender's fingerprint"));
                }
                self.complete = true;
            }
        }
        Ok(())
    }

    fn take_objects(&mut self, objects: Vec<Record>) -> Result<()> {
        let mut batch = Batch::default();
        for record in objects {
            let object =
                Object::new(record.key.into(), record.value, record.create_revision, record.mod_revision);
            digest_object(&mut self.hasher, &object);
            self.fingerprint.add_object(&object);
            records::put_object(&mut batch, &object)?;
            self.objects.insert(object.key.clone(), Arc::new(object));
        }
        self.backend.write(batch)
    }

    /// Ends the stream: checks that the snapshot is complete and makes the state durable.
    pub fn finish(mut self) -> Result<Staged> {
        let head = self.head.take().filter(|_| self.complete);
        let state =
            head.ok_or_else(|| Error::Damaged { what: "snapshot", reason: "it ends too early".to_owned() })?;
        let mut batch = Batch::default();
        records::put_state(&mut batch, &state)?;
        self.backend.write(batch)?;
        self.backend.sync()?;
        let (revision, applied) = (state.revision, state.applied.clone());
        self.head = Some(state);
        Ok(Staged { staging: self, revision, applied })
    }

    /// Makes the state the current one and returns its parts for the store.
    pub(crate) fn adopt(mut self) -> Result<Adopted> {
        if let Some(name) = self.name.take() {
            self.home.adopt(&name)?;
        }
        let state = self.head.take().unwrap_or_default();
        let mut recent = RecentOutcomes::with_forgotten(state.forgotten);
        for (index, outcomes) in std::mem::take(&mut self.recent) {
            recent.restore(index, outcomes);
        }
        let objects = std::mem::take(&mut self.objects);
        Ok(Adopted { backend: self.backend.clone(), objects, recent, state })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The state was not adopted, so its files are removed.
        if self.name.is_some() {
            self.backend.retire();
        }
    }
}

// === impl Staged ===

impl Staged {
    /// Returns the snapshot's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns what the sender's consensus stored beside the state.
    pub fn applied(&self) -> &[u8] {
        &self.applied
    }
}
