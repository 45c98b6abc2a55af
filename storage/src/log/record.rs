//! The on-disk format of the log's records. Each record has a header that can be checked by itself, then
//! the encrypted content, which is bound to the header: without the data key a record cannot be moved,
//! changed or read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::crypto::Sealer;
use crate::{Error, Result, codec};

const MAGIC: u32 = 0x4550_4c31;
/// Bytes of a header: magic, length, sequence and synced (24 bytes), then a checksum of these.
pub(super) const HEADER_BYTES: usize = 32;
const CHECKED_BYTES: usize = 24;

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// An entry; it removes all entries with greater indexes.
    Entry { index: u64, payload: Bytes },
    /// Removes the entries after this index (`None`: all).
    TruncateAfter(Option<u64>),
    /// Removes the entries up to this index; `id` is the caller's name for that index.
    Purge { index: u64, id: Vec<u8> },
    /// The vote.
    Vote(Vec<u8>),
    /// The committed position.
    Committed(Vec<u8>),
    /// The first record of every segment: the state given by earlier segments, besides entries.
    Head { vote: Option<Vec<u8>>, committed: Option<Vec<u8>>, purged: Option<(u64, Vec<u8>)> },
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of encrypted content.
    pub len: usize,
    /// The record's number among all records of the log.
    pub sequence: u64,
    /// Sequence number up to which earlier records were synced when this one was written.
    pub synced: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // `seal` limits the content, so the length fits.
        out[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.to_le_bytes());
        let check = checksum(&out[..CHECKED_BYTES]);
        out[24..].copy_from_slice(&check);
        out
    }

    /// Reads the header at the start of `bytes`; `None` if it is incomplete or its checksum is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let half = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        if half(0)? != MAGIC || checksum(&bytes[..CHECKED_BYTES]) != bytes[CHECKED_BYTES..] {
            return None;
        }
        Some(Self { len: half(4)? as usize, sequence: number(8)?, synced: number(16)? })
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    out
}

/// Appends the record to `out` in its on-disk format.
pub(super) fn seal(
    sealer: &Sealer,
    record: &Record,
    sequence: u64,
    synced: u64,
    out: &mut Vec<u8>,
) -> Result<()> {
    let plain = codec::encode("log record", record)?;
    // Encryption adds a nonce of 24 and a tag of 16 bytes.
    let len = plain.len() + 40;
    if len > codec::LIMIT_BYTES {
        return Err(Error::TooLarge { what: "a log record" });
    }
    let header = Header { len, sequence, synced }.encode();
    out.extend_from_slice(&header);
    out.extend_from_slice(&sealer.seal(&header, &plain)?);
    Ok(())
}

/// Reads and decrypts the record at the start of `bytes`.
pub(super) fn open(sealer: &Sealer, bytes: &[u8]) -> Result<(Header, Record)> {
    let damaged = |reason: &str| Error::Damaged { what: "log record", reason: reason.to_owned() };
    let header = Header::decode(bytes).ok_or_else(|| damaged("its header is not right"))?;
    let sealed =
        bytes.get(HEADER_BYTES..HEADER_BYTES + header.len).ok_or_else(|| damaged("it is cut short"))?;
    let plain = sealer.open("log record", &bytes[..HEADER_BYTES], sealed)?;
    Ok((header, codec::decode("log record", &plain)?))
}
