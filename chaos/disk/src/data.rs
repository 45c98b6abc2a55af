//! One file's bytes that are not synced: for every block written since the last
//! sync, what it held before. `state` calls it for each write and sync, `cut`
//! when the power goes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

/// A page of the page cache: what is written back together.
pub(crate) const BLOCK: u64 = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Memory of an entry beside its bytes, roughly.
const ENTRY_BYTES: u64 = 96;

/// An open file of the backing directory and what of it is not synced.
pub(crate) struct Data {
    file: Arc<File>,
    /// As programs see it.
    len: u64,
    /// As of the last sync.
    durable_len: u64,
    pending: BTreeMap<u64, Pending>,
    pending_bytes: u64,
}

struct Pending {
    /// When it was written last.
    sequence: u64,
    /// What it held at the last sync; nothing if it lay beyond the end.
    before: Option<Box<[u8]>>,
    /// A sync of it has failed: the kernel will not try again.
    forsaken: bool,
}

/// How a file comes through a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// As it was synced last.
    Dropped,
    /// The disk had all of it.
    Kept,
    /// What was written up to some moment is there.
    Prefix,
    /// Each block for itself is new, old or torn, in any order; so is the length.
    Torn,
}

// === impl Data ===

impl Data {
    /// The data of a file whose present content is durable, or of a new, empty one.
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

    /// Memory that remembers, in bytes.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Remembers what the blocks from `start` to before `end` hold, if not done yet.
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

    /// A block as it is now, zeros beyond the end.
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

    /// Everything but what is forsaken is durable. Gives the memory set free.
    pub(crate) fn synced(&mut self) -> u64 {
        self.durable_len = self.len;
        let before = self.pending_bytes;
        self.pending.retain(|_, pending| pending.forsaken);
        let of = |pending: &Pending| ENTRY_BYTES + pending.before.as_ref().map_or(0, |_| BLOCK);
        self.pending_bytes = self.pending.values().map(of).sum();
        before - self.pending_bytes
    }

    /// A sync has failed: what it was for will not reach the disk any more.
    pub(crate) fn forsake(&mut self) {
        self.pending.values_mut().for_each(|pending| pending.forsaken = true);
    }

    /// What the power cut leaves. Gives how many blocks were pending, and how
    /// many of them are not wholly there.
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
        // Grow first, cut last: blocks are put back in between.
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

    /// Puts a block back as it was: all of it, or with `random` some of its sectors.
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
            // A file that was cut shorter: either happened.
            _ if self.len <= self.durable_len => {
                if random.random_bool(0.5) {
                    self.len
                } else {
                    self.durable_len
                }
            }
            // It grew with what was written.
            Fate::Prefix => kept_end.clamp(self.durable_len, self.len),
            Fate::Torn => match random.random_range(0..3) {
                0 => self.len,
                1 => kept_end.clamp(self.durable_len, self.len),
                _ => random.random_range(self.durable_len..=self.len),
            },
        }
    }
}
