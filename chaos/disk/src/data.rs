//! Unsynced bytes of one file: for every block written since the last sync, its content before. `state` calls
//! it for each write and sync, `cut` at a power cut.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

/// Size of a page of the page cache, the unit of write-back, in bytes.
pub(crate) const BLOCK: u64 = 4096;
/// Size of a sector, which a disk writes completely or not at all, in bytes.
const SECTOR: usize = 512;
/// Approximate memory of an entry in addition to its bytes.
const ENTRY_BYTES: u64 = 96;

/// An open file of the backing directory, with what of it is not synced.
pub(crate) struct Data {
    file: Arc<File>,
    /// Length as programs see it.
    len: u64,
    /// Length at the last sync.
    durable_len: u64,
    pending: BTreeMap<u64, Pending>,
    pending_bytes: u64,
}

struct Pending {
    /// Sequence number of the block's last write.
    sequence: u64,
    /// Content at the last sync; `None` if the block lay beyond the end.
    before: Option<Box<[u8]>>,
    /// Whether a sync of the block has failed: the kernel does not write it again.
    forsaken: bool,
}

/// How a file survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The file is as it was at its last sync.
    Dropped,
    /// The whole file had reached the disk.
    Kept,
    /// All writes up to some moment survive, and none after.
    Prefix,
    /// Each block on its own is new, old or torn, in any order; so is the length.
    Torn,
}

// === impl Data ===

impl Data {
    /// Creates the data of a file whose present content is durable, or of a new, empty file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len, durable_len: len, pending: BTreeMap::new(), pending_bytes: 0 })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.pending.is_empty() && self.len == self.durable_len
    }

    /// Returns the memory used for old contents, in bytes.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Saves the old content of the blocks from `start` to before `end`, unless it is saved already.
    fn remember(&mut self, start: u64, end: u64, sequence: u64) -> io::Result<()> {
        for number in start / BLOCK..end.div_ceil(BLOCK) {
            if let Some(pending) = self.pending.get_mut(&number) {
                (pending.sequence, pending.forsaken) = (sequence, false);
                continue;
            }
            let before = if number * BLOCK < self.durable_len { Some(self.block(number)?) } else { None };
            self.pending_bytes += ENTRY_BYTES + before.as_ref().map_or(0, |_| BLOCK);
            self.pending.insert(number, Pending { sequence, before, forsaken: false });
        }
        Ok(())
    }

    /// Reads a block as it is now, with zeros beyond the end of the file.
    fn block(&self, number: u64) -> io::Result<Box<[u8]>> {
        let mut block = vec![0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.file.read_at(&mut block[filled..], number * BLOCK + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(block.into())
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8], sequence: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        self.remember(offset, end, sequence)?;
        self.file.write_all_at(bytes, offset)?;
        self.len = self.len.max(end);
        Ok(())
    }

    pub(crate) fn set_len(&mut self, len: u64, sequence: u64) -> io::Result<()> {
        if len < self.len {
            self.remember(len, self.len, sequence)?;
        }
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    /// Marks everything as durable, except blocks whose sync has failed. Returns the memory freed, in bytes.
    pub(crate) fn synced(&mut self) -> u64 {
        self.durable_len = self.len;
        let before = self.pending_bytes;
        self.pending.retain(|_, pending| pending.forsaken);
        let of = |pending: &Pending| ENTRY_BYTES + pending.before.as_ref().map_or(0, |_| BLOCK);
        self.pending_bytes = self.pending.values().map(of).sum();
        before - self.pending_bytes
    }

    /// Marks the pending blocks as failed: their sync has failed, and they will not reach the disk any more.
    pub(crate) fn forsake(&mut self) {
        self.pending.values_mut().for_each(|pending| pending.forsaken = true);
    }

    /// Restores what a power cut leaves of the file. Returns the number of pending blocks, and how many of
    /// these did not survive completely.
    pub(crate) fn cut(mut self, random: &mut StdRng) -> io::Result<(u64, u64)> {
        let fate = match random.random_range(0..10) {
            0..3 => Fate::Dropped,
            3 => Fate::Kept,
            4..7 => Fate::Prefix,
            _ => Fate::Torn,
        };
        let moments: Vec<u64> = self.pending.values().map(|pending| pending.sequence).collect();
        let until = moments.get(random.random_range(0..moments.len().max(1))).copied().unwrap_or(0);
        let (total, mut lost, mut kept_end) = (moments.len() as u64, 0, 0);
        let pending = std::mem::take(&mut self.pending);
        // The file is extended first and truncated last; blocks are restored in between.
        for (number, pending) in pending {
            let whole = !pending.forsaken
                && match fate {
                    Fate::Dropped => false,
                    Fate::Kept => true,
                    Fate::Prefix => pending.sequence <= until,
                    Fate::Torn => random.random_bool(0.4),
                };
            let torn = !whole && !pending.forsaken && fate == Fate::Torn && random.random_bool(0.5);
            if whole || torn {
                kept_end = kept_end.max((number + 1) * BLOCK);
            }
            if !whole {
                lost += 1;
                self.put_back(number, pending.before, torn.then_some(&mut *random))?;
            }
        }
        let len = self.surviving_len(fate, kept_end, random);
        self.file.set_len(len)?;
        Ok((total, lost))
    }

    /// Restores a block: all of it, or with `random` only some of its sectors.
    fn put_back(
        &self,
        number: u64,
        before: Option<Box<[u8]>>,
        mut random: Option<&mut StdRng>,
    ) -> io::Result<()> {
        let before = before.unwrap_or_else(|| vec![0; BLOCK as usize].into());
        for (sector, bytes) in before.chunks(SECTOR).enumerate() {
            if random.as_mut().is_none_or(|random| random.random_bool(0.5)) {
                self.file.write_all_at(bytes, number * BLOCK + (sector * SECTOR) as u64)?;
            }
        }
        Ok(())
    }

    fn surviving_len(&self, fate: Fate, kept_end: u64, random: &mut StdRng) -> u64 {
        match fate {
            Fate::Dropped => self.durable_len,
            Fate::Kept => self.len,
            // The file was truncated: either length may survive.
            _ if self.len <= self.durable_len => {
                if random.random_bool(0.5) {
                    self.len
                } else {
                    self.durable_len
                }
            }
            // The file grew with the writes that survive.
            Fate::Prefix => kept_end.clamp(self.durable_len, self.len),
            Fate::Torn => match random.random_range(0..3) {
                0 => self.len,
                1 => kept_end.clamp(self.durable_len, self.len),
                _ => random.random_range(self.durable_len..=self.len),
            },
        }
    }
}
