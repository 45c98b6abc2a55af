//! How much one image may take: bytes and files on disk while it is fetched and unpacked, and bytes of
//! headers in memory while an archive is read. An image's documents say what its author likes, so that everything
//! is counted as it is written, not as it is announced.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

/// The largest part of a file system that stays free, and the most bytes that does.
const RESERVE_PART: u64 = 20;
const RESERVE_BYTES: u64 = 2 << 30;
/// Bytes of headers, extensions and padding that one entry of an archive may have.
const HEADERS_BYTES: u64 = 2 << 20;

/// Bytes and files that may still be written for one image.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
    refusal: String,
    entries_max: u64,
}

impl Budget {
    /// Of at most `bytes` in `entries` files, and less if the file system of `directory` has not that much room.
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

    /// Counts bytes that are about to be written. Fails with `FileTooLarge` if they are too many.
    pub fn take(&self, count: u64) -> io::Result<()> {
        take(&self.bytes, count, || self.refusal.clone())
    }

    /// Counts a file that is about to be made. Fails with `FileTooLarge` if there are too many.
    pub fn take_entry(&self) -> io::Result<()> {
        take(&self.entries, 1, || format!("the image has more than {} files", self.entries_max))
    }

    /// Copies `from` to `to` within the budget; returns the bytes copied.
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

/// Lets only so many bytes of an archive pass while the `tar` crate reads headers, which it keeps in memory
/// whole, however long they say they are.
#[derive(Clone, Default)]
pub(crate) struct Gauge(Rc<Cell<Option<u64>>>);

impl Gauge {
    /// Before the next entry is read, whose content must have been read to its end before.
    pub fn before_headers(&self) {
        self.0.set(Some(HEADERS_BYTES));
    }

    /// Before content is read, which is not kept.
    pub fn before_content(&self) {
        self.0.set(None);
    }

    /// A reader of the archive that the gauge watches.
    pub fn watch<R: Read>(&self, inner: R) -> Gauged<R> {
        Gauged { inner, gauge: self.clone() }
    }
}

/// A reader that a [`Gauge`] watches.
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
