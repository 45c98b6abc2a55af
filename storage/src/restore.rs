//! Restoring snapshots from a backup: they are checked frame by frame without keeping the objects
//! ([`FrameReader`]), and written into a new, empty home as the state from which a new cluster continues
//! ([`Restoring`]). `consensus/restore.rs` sets that cluster's members; nothing here serves requests.

use std::path::Path;
use std::sync::Arc;

use proto_env::Env;

use crate::backend::sled::SledHome;
use crate::backend::{Backend, Batch, Home};
use crate::crypto::{DataKey, Sealer};
use crate::snapshot::{FORMAT, SnapshotFrame, digest_object};
use crate::store::records::{self, StateRecord};
use crate::{Error, Fingerprint, Object, Result, Revision, codec};

/// The contents of a complete, checked snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The snapshot's revision.
    pub revision: Revision,
    /// Record that the consensus stored beside the state.
    pub applied: Vec<u8>,
    /// Number of objects.
    pub objects: u64,
}

/// Takes the frames of a snapshot in order and checks them.
#[derive(Default)]
pub struct FrameReader {
    head: Option<StateRecord>,
    objects: u64,
    /// Fingerprints of the objects alone, and of all records.
    of_objects: Fingerprint,
    of_all: Fingerprint,
    hasher: blake3::Hasher,
    complete: bool,
}

/// A restore in progress, into a directory that held no state.
pub struct Restoring {
    home: SledHome,
    name: String,
    backend: Arc<dyn Backend>,
    reader: FrameReader,
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::Damaged { what: "snapshot", reason: reason.into() }
}

// === impl FrameReader ===

impl FrameReader {
    /// Checks the next frame and returns its objects, in the order of keys. Outcomes of recent proposals
    /// are left out: nobody resends a proposal to another cluster.
    pub fn push(&mut self, frame: &[u8]) -> Result<Vec<Object>> {
        if self.complete {
            return Err(damaged("frames follow its end"));
        }
        let mut objects = Vec::new();
        match codec::decode("snapshot frame", frame)? {
            SnapshotFrame::Head { format, .. } if format != FORMAT => {
                return Err(damaged(format!("its format is {format}, this version reads {FORMAT}")));
            }
            SnapshotFrame::Head { .. } if self.head.is_some() => return Err(damaged("it has two heads")),
            SnapshotFrame::Head { state, .. } => self.head = Some(state),
            _ if self.head.is_none() => return Err(damaged("it does not begin with its head")),
            SnapshotFrame::Objects(records) => {
                objects.reserve(records.len());
                for record in records {
                    let (created, changed) = (record.create_revision, record.mod_revision);
                    let object = Object::new(record.key.into(), record.value, created, changed);
                    digest_object(&mut self.hasher, &object);
                    self.of_objects.add_object(&object);
                    self.of_all.add_object(&object);
                    self.objects += 1;
                    objects.push(object);
                }
            }
            SnapshotFrame::Recent(recent) => {
                for (index, outcomes) in &recent {
                    self.of_all.add_outcomes(*index, outcomes)?;
                }
            }
            SnapshotFrame::End { objects, digest } => {
                if objects != self.objects || digest != *self.hasher.finalize().as_bytes() {
                    return Err(damaged("its content does not match its digest"));
                }
                if self.head.as_ref().is_none_or(|state| state.fingerprint != self.of_all) {
                    return Err(damaged("its records do not add up to its fingerprint"));
                }
                self.complete = true;
            }
        }
        Ok(objects)
    }

    /// Returns the snapshot's contents; fails if its end was not seen.
    pub fn finish(self) -> Result<Checked> {
        let head = self.head.filter(|_| self.complete);
        let state = head.ok_or_else(|| damaged("it ends too early"))?;
        Ok(Checked { revision: state.revision, applied: state.applied, objects: self.objects })
    }
}

// === impl Restoring ===

impl Restoring {
    /// Begins a state in `directory`, encrypted with `key`. Until it is finished the directory holds no
    /// current state; then [`crate::Store::open`] can open it.
    pub fn begin(directory: &Path, key: &DataKey, env: &Env) -> Result<Self> {
        let sealer = Sealer::new(key, "objects", env.random.clone());
        let home = SledHome::new(directory, sealer, env.disk.clone())?;
        let (name, backend) = home.stage()?;
        Ok(Self { home, name, backend, reader: FrameReader::default() })
    }

    /// Writes the objects of the next frame.
    pub fn push(&mut self, frame: &[u8]) -> Result<()> {
        let mut batch = Batch::default();
        for object in self.reader.push(frame)? {
            records::put_object(&mut batch, &object)?;
        }
        self.backend.write(batch)
    }

    /// Makes the state durable and current. `place` turns the snapshot's contents into the revision from
    /// which the state continues, the log index up to which everything is applied, and the data that the
    /// consensus stores beside the state.
    pub fn finish(self, place: impl FnOnce(&Checked) -> Result<(Revision, u64, Vec<u8>)>) -> Result<Checked> {
        let fingerprint = self.reader.of_objects;
        let checked = self.reader.finish()?;
        let (revision, index, applied) = place(&checked)?;
        let mut batch = Batch::default();
        // All outcomes of earlier proposals are forgotten.
        let state = StateRecord { revision, forgotten: index, applied, index, fingerprint };
        records::put_state(&mut batch, &state)?;
        self.backend.write(batch)?;
        self.backend.sync()?;
        self.home.adopt(&self.name)?;
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use proto_env::{CancellationToken, SystemRandom, TlsNetwork};

    use super::*;
    use crate::{Command, Entry, Limits, Mutation, Store, Txn};

    fn filled(objects: usize) -> Arc<Store> {
        let store = Store::in_memory(Limits::default()).unwrap();
        for number in 0..objects {
            let put = Mutation::Put {
                key: format!("/registry/core/configmaps/default/c{number:04}"),
                value: Bytes::from(vec![b'x'; 4000 + number]),
            };
            let txn = Txn { preconditions: Vec::new(), mutations: vec![put] };
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let command = Command { id, born: 0, fence: None, txn };
            let entry = Entry { index: number as u64 + 1, term: 1, commands: vec![command], raise: 0 };
            store.apply(vec![entry], b"here".to_vec()).unwrap();
        }
        store
    }

    fn env() -> Env {
        Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new())
    }

    #[test]
    fn a_restored_state_holds_the_objects_at_a_later_revision_and_no_history() {
        let store = filled(300);
        let directory = tempfile::tempdir().unwrap();
        let key = DataKey::generate(&SystemRandom);
        let mut restoring = Restoring::begin(directory.path(), &key, &env()).unwrap();
        let view = store.view();
        for frame in view.frames() {
            restoring.push(&frame.unwrap()).unwrap();
        }
        let checked = restoring
            .finish(|checked| {
                assert_eq!((checked.revision, &checked.applied[..]), (300, &b"here"[..]));
                Ok((1_300, 77, b"there".to_vec()))
            })
            .unwrap();
        assert_eq!(checked.objects, 300);
        let opened = Store::open(directory.path(), &key, &env(), Limits::default()).unwrap();
        assert_eq!((opened.revision(), opened.len(), opened.applied()), (1_300, 300, b"there".to_vec()));
        for object in store.range("", None, 0, None).unwrap().objects {
            let found = opened.get(&object.key).unwrap();
            assert_eq!((&found.value, found.mod_revision), (&object.value, object.mod_revision));
        }
        // A client that knows a revision from before the restore has to list again.
        assert!(opened.watch("/registry/core/configmaps/", 300).is_err());
        assert!(opened.range("/", None, 0, Some(300)).is_err());
        assert!(opened.watch("/registry/core/configmaps/", 1_300).is_ok());
    }

    #[test]
    fn a_snapshot_without_its_end_or_with_other_objects_is_refused() {
        let view = filled(300).view();
        let frames: Vec<Bytes> = view.frames().map(|frame| frame.unwrap()).collect();
        assert!(frames.len() > 4, "{}", frames.len());
        for left_out in 0..frames.len() {
            let mut reader = FrameReader::default();
            let pushed: Result<Vec<_>> = (0..frames.len())
                .filter(|number| *number != left_out)
                .map(|number| reader.push(&frames[number]))
                .collect();
            assert!(pushed.is_err() || reader.finish().is_err(), "without frame {left_out}");
        }
    }

    #[tokio::test]
    async fn a_state_that_was_not_finished_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let key = DataKey::generate(&SystemRandom);
        let mut restoring = Restoring::begin(directory.path(), &key, &env()).unwrap();
        let view = filled(10).view();
        for frame in view.frames() {
            restoring.push(&frame.unwrap()).unwrap();
        }
        drop(restoring);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(Store::open(directory.path(), &key, &env(), Limits::default()).is_err());
    }
}
