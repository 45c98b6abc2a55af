//! How objects, outcomes and the state itself are written as records of a
//! backend.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::{Batch, Table};
use crate::recent::Outcomes;
use crate::{Error, Fingerprint, Object, Result, Revision, codec};

const STATE_KEY: &[u8] = b"state";
/// Bytes before the value in an object's record: its two revisions.
const REVISIONS_BYTES: usize = 16;

/// The single record of the state machine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub revision: Revision,
    pub forgotten: u64,
    pub applied: Vec<u8>,
    /// The last log entry applied.
    pub index: u64,
    /// What all other records add up to.
    pub fingerprint: Fingerprint,
}

pub(crate) fn put_state(batch: &mut Batch, state: &State) -> Result<()> {
    batch.put(Table::Meta, STATE_KEY.to_vec(), codec::encode("state", state)?);
    Ok(())
}

pub(crate) fn state(value: &[u8]) -> Result<State> {
    codec::decode("state", value)
}

pub(crate) fn put_object(batch: &mut Batch, object: &Object) -> Result<()> {
    let mut value = Vec::with_capacity(REVISIONS_BYTES + object.value.len());
    value.extend_from_slice(&object.create_revision.to_le_bytes());
    value.extend_from_slice(&object.mod_revision.to_le_bytes());
    value.extend_from_slice(&object.value);
    batch.put(Table::Objects, object.key.as_bytes().to_vec(), value);
    Ok(())
}

pub(crate) fn object(key: &[u8], value: Vec<u8>) -> Result<Object> {
    let damaged = |reason: String| Error::Damaged { what: "object", reason };
    let key = std::str::from_utf8(key).map_err(|error| damaged(error.to_string()))?;
    let revision = |at: usize| {
        let bytes = value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| damaged("shorter than its revisions".to_owned()))
    };
    let (create_revision, mod_revision) = (revision(0)?, revision(8)?);
    // Copied, so that no object keeps a larger allocation alive.
    let value = Bytes::copy_from_slice(&value[REVISIONS_BYTES..]);
    Ok(Object::new(key.into(), value, create_revision, mod_revision))
}

pub(crate) fn put_recent(batch: &mut Batch, index: u64, outcomes: &Outcomes) -> Result<()> {
    batch.put(Table::Recent, index.to_be_bytes().to_vec(), codec::encode("outcomes", outcomes)?);
    Ok(())
}

pub(crate) fn delete_recent(batch: &mut Batch, index: u64) {
    batch.delete(Table::Recent, index.to_be_bytes().to_vec());
}

pub(crate) fn recent(key: &[u8], value: &[u8]) -> Result<(u64, Outcomes)> {
    let index = key
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| Error::Damaged { what: "outcomes", reason: "their key is no log index".to_owned() })?;
    Ok((index, codec::decode("outcomes", value)?))
}
