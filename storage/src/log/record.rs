//! How records of the log lie in a segment file. Each has a header that can be
//! checked by itself, then the sealed content, bound to the header: a record
//! cannot be moved, changed or read without the data key.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::crypto::Sealer;
use crate::{Error, Result, codec};

const MAGIC: u32 = 0x4550_4c31;
/// Magic, length, sequence, synced (24 bytes), then a checksum of these.
pub(super) const HEADER_BYTES: usize = 32;
const CHECKED_BYTES: usize = 24;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// An entry, after which none with a greater index exists.
    Entry { index: u64, payload: Bytes },
    /// Entries after this index (`None`: all) are gone.
    TruncateAfter(Option<u64>),
    /// Entries up to this index are gone; `id` is what the caller calls it.
    Purge { index: u64, id: Vec<u8> },
    /// The vote.
    Vote(Vec<u8>),
    /// What is known to be committed.
    Committed(Vec<u8>),
    /// Begins every segment: what earlier segments say besides entries.
    Head { vote: Option<Vec<u8>>, committed: Option<Vec<u8>>, purged: Option<(u64, Vec<u8>)> },
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of sealed content.
    pub len: usize,
    /// Counts all records of the log.
    pub sequence: u64,
    /// Records before this one were synced when this one was written.
    pub synced: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // `seal` bounds the content, see there.
        out[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.to_le_bytes());
        let check = checksum(&out[..CHECKED_BYTES]);
        out[24..].copy_from_slice(&check);
        out
    }

    /// The header at the start of `bytes`, if there is a whole and right one.
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

/// Appends the record to `out` as it lies in the file.
pub(super) fn seal(
    sealer: &Sealer,
    record: &Record,
    sequence: u64,
    synced: u64,
    out: &mut Vec<u8>,
) -> Result<()> {
    let plain = codec::encode("log record", record)?;
    // Sealing adds a nonce of 24 and a tag of 16 bytes.
    let len = plain.len() + 40;
    if len > codec::LIMIT_BYTES {
        return Err(Error::TooLarge { what: "a log record" });
    }
    let header = Header { len, sequence, synced }.encode();
    out.extend_from_slice(&header);
    out.extend_from_slice(&sealer.seal(&header, &plain)?);
    Ok(())
}

/// Opens the record whose header and content begin `bytes`.
pub(super) fn open(sealer: &Sealer, bytes: &[u8]) -> Result<(Header, Record)> {
    let damaged = |reason: &str| Error::Damaged { what: "log record", reason: reason.to_owned() };
    let header = Header::decode(bytes).ok_or_else(|| damaged("its header is not right"))?;
    let sealed =
        bytes.get(HEADER_BYTES..HEADER_BYTES + header.len).ok_or_else(|| damaged("it is cut short"))?;
    let plain = sealer.open("log record", &bytes[..HEADER_BYTES], sealed)?;
    Ok((header, codec::decode("log record", &plain)?))
}
