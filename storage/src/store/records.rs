//! The on-disk format of objects, outcomes and the state itself as records of a backend.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::{Batch, Table};
use crate::recent_outcomes::Outcomes;
use crate::{Error, Fingerprint, Object, Result, Revision, codec};

const STATE_KEY: &[u8] = b"state";
/// Bytes before key and value in an object's record: the revision of its last change, and the length of its
/// key.
const HEAD_BYTES: usize = 12;

/// The single record of the state machine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub revision: Revision,
    pub forgotten: u64,
    pub applied: Vec<u8>,
    /// The index of the last log entry applied.
    pub index: u64,
    /// The fingerprint of all other records.
    pub fingerprint: Fingerprint,
}

pub(crate) fn put_state(batch: &mut Batch, state: &StateRecord) -> Result<()> {
    batch.put(Table::Meta, STATE_KEY.to_vec(), codec::encode("state", state)?);
    Ok(())
}

pub(crate) fn state(value: &[u8]) -> Result<StateRecord> {
    codec::decode("state", value)
}

/// Adds an object to a batch, under the revision that created it. That revision is unique and never
/// changes, so objects created together are neighbours, and the object's name is not readable on disk.
pub(crate) fn put_object(batch: &mut Batch, object: &Object) -> Result<()> {
    let key = object.key.as_bytes();
    let length = u32::try_from(key.len()).map_err(|_| Error::TooLarge { what: "a key" })?;
    let mut record = Vec::with_capacity(HEAD_BYTES + key.len() + object.value.len());
    record.extend_from_slice(&object.mod_revision.to_le_bytes());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(key);
    record.extend_from_slice(&object.value);
    batch.put(Table::Objects, object.create_revision.to_be_bytes().to_vec(), record);
    Ok(())
}

/// Removes the object that this revision created.
pub(crate) fn delete_object(batch: &mut Batch, created: Revision) {
    batch.delete(Table::Objects, created.to_be_bytes().to_vec());
}

pub(crate) fn object(created: &[u8], record: &[u8]) -> Result<Object> {
    let damaged = |reason: &str| Error::Damaged { what: "object", reason: reason.to_owned() };
    let created = created.try_into().map_err(|_| damaged("what it lies under is no revision"))?;
    let short = || damaged("shorter than it says");
    let (changed, rest) = record.split_first_chunk::<8>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| short())?;
    let (key, value) = rest.split_at_checked(length).ok_or_else(short)?;
    let key = std::str::from_utf8(key).map_err(|_| damaged("its key is no text"))?;
    // Copied, so that the object does not keep a larger allocation alive.
    let value = Bytes::copy_from_slice(value);
    let (created, changed) = (u64::from_be_bytes(created), u64::from_le_bytes(*changed));
    Ok(Object::new(key.into(), value, created, changed))
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
