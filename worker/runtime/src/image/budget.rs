//! Limits what one image may use: bytes and files on disk while it is fetched and unpacked, and bytes of
//! headers in memory while an archive is read. Counts what is actually written, because sizes announced in an
//! image's documents cannot be trusted.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

/// Space of a file system that images must leave free: its size divided by `RESERVE_PART`,
/// but at most `RESERVE_BYTES`.
const RESERVE_PART: u64 = 20;
const RESERVE_BYTES: u64 = 2 << 30;
/// Maximum number of bytes of headers, extensions and padding of one archive entry.
const HEADERS_BYTES: u64 = 2 << 20;

/// Number of bytes and files that may still be written for one image.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
    refusal: String,
    entries_max: u64,
}

impl Budget {
    /// Makes a budget of `bytes` and `entries`; of fewer bytes if the file system of `directory`
    /// has less space available.
    pub fn new(directory: &Path, bytes: u64, entries: u64) -> io::Result<Self> {
        let found = statvfs(directory)?;
        let size = |blocks: libc::fsblkcnt_t| blocks.saturating_mul(found.fragment_size());
        let free = size(found.blocks_available());
        let reserve = (size(found.blocks()) / RESERVE_PART).min(RESERVE_BYTES);
        let room = free.saturating_sub(reserve);
        let refusal = match room < bytes {
            true => {
                format!("no space left for the image: {free} bytes are free, of which {reserve} stay free")
            }
            false => format!("the image is larger than {bytes} bytes"),
        };
        Ok(Self {
            bytes: AtomicU64::new(bytes.min(room)),
            entries: AtomicU64::new(entries),
            refusal,
            entries_max: entries,
        })
    }

    /// Counts bytes that are about to be written. Fails with `FileTooLarge` if the
    /// budget does not cover them.
    pub fn take(&self, count: u64) -> io::Result<()> {
        take(&self.bytes, count, || self.refusal.clone())
    }

    /// Counts a file that is about to be created. Fails with `FileTooLarge` if the budget does not cover it.
    pub fn take_entry(&self) -> io::Result<()> {
        take(&self.entries, 1, || format!("the image has more than {} files", self.entries_max))
    }

    /// Copies `from` to `to` within the budget; returns the number of bytes copied.
    pub fn copy(&self, from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
        let mut buffer = vec![0; 128 << 10];
        let mut total = 0;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.take(count as u64)?;
            to.write_all(&buffer[..count])?;
            total += count as u64;
        }
    }
}

fn take(from: &AtomicU64, count: u64, refusal: impl FnOnce() -> String) -> io::Result<()> {
    let taken = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count));
    taken.map(drop).map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, refusal()))
}

/// Limits the bytes of an archive that the `tar` crate may read as headers, which it keeps in memory whatever
/// length they announce. Shared with the reader of the archive.
#[derive(Clone, Default)]
pub(crate) struct Gauge(Rc<Cell<Option<u64>>>);

impl Gauge {
    /// Starts to limit the bytes read; call it before the next entry's headers, once the
    /// previous content was read.
    pub fn before_headers(&self) {
        self.0.set(Some(HEADERS_BYTES));
    }

    /// Stops limiting the bytes read; call it before reading an entry's content, which is not kept in memory.
    pub fn before_content(&self) {
        self.0.set(None);
    }

    /// Wraps the reader of the archive so that the gauge limits it.
    pub fn watch<R: Read>(&self, inner: R) -> Gauged<R> {
        Gauged { inner, gauge: self.clone() }
    }
}

/// A reader that a [`Gauge`] limits.
pub(crate) struct Gauged<R> {
    inner: R,
    gauge: Gauge,
}

impl<R> Gauged<R> {
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Gauged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(left) = self.gauge.0.get() {
            let left = left.checked_sub(count as u64).ok_or_else(|| {
                let text = format!("the headers of an entry are larger than {HEADERS_BYTES} bytes");
                io::Error::new(io::ErrorKind::FileTooLarge, text)
            })?;
            self.gauge.0.set(Some(left));
        }
        Ok(count)
    }
}
