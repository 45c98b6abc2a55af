//! Store of blobs by digest on disk (`blobs/sha256/HEX`). A blob is stored only after its computed
//! hash has matched its name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::ImageError;
use super::hold::{ContentHold, Holds};
use super::reference::is_digest;

/// The blob store of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
    ingest: PathBuf,
    holds: Holds,
}

impl Blobs {
    /// Opens the store below `root` and removes incomplete blobs of an interrupted run.
    pub fn open(root: &Path) -> io::Result<Self> {
        let blobs = Self {
            directory: root.join("blobs/sha256"),
            ingest: root.join("ingest"),
            holds: Holds::default(),
        };
        crate::files::remove_tree(&blobs.ingest)?;
        crate::files::make_private_directory(&blobs.directory)?;
        crate::files::make_private_directory(&blobs.ingest)?;
        Ok(blobs)
    }

    /// Returns the holds on blobs and layers.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Returns the directory for temporary files that are renamed into the store.
    pub fn ingest_directory(&self) -> &Path {
        &self.ingest
    }

    /// Returns the path of the blob's file, whether it exists or not. Fails if `digest` is malformed.
    pub fn path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        if !is_digest(digest) {
            return Err(ImageError::Invalid(format!("unsupported digest \"{digest}\"")));
        }
        Ok(self.directory.join(&digest["sha256:".len()..]))
    }

    /// Returns whether a blob of that size is stored; size 0 matches any.
    pub fn has(&self, digest: &str, size: u64) -> Result<bool, ImageError> {
        match fs::metadata(self.path(digest)?) {
            Ok(metadata) => Ok(size == 0 || metadata.len() == size),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &str) -> Result<File, ImageError> {
        File::open(self.path(digest)?).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ImageError::Invalid(format!("content {digest} is missing")),
            _ => e.into(),
        })
    }

    /// Reads a whole blob of at most `limit` bytes.
    pub fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.open_blob(digest)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::Invalid(format!("content {digest} is larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Opens a temporary file for a new blob.
    pub fn writer(&self) -> io::Result<BlobWriter> {
        let file = tempfile::Builder::new().prefix("blob-").tempfile_in(&self.ingest)?;
        Ok(BlobWriter { file, hash: Sha256::new(), size: 0, directory: self.directory.clone() })
    }

    /// Stores a small blob, returning its digest.
    pub fn put(&self, bytes: &[u8], hold: &ContentHold) -> io::Result<String> {
        let mut writer = self.writer()?;
        writer.write_all(bytes)?;
        writer.commit(hold)
    }

    /// Returns the digests of all blobs.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            digests.push(format!("sha256:{}", entry?.file_name().to_string_lossy()));
        }
        Ok(digests)
    }

    /// Removes a blob that no work holds and for which `unused` returns true.
    pub fn remove(&self, digest: &str, unused: impl FnOnce() -> bool) -> Result<(), ImageError> {
        let path = self.path(digest)?;
        self.holds.unless_held(digest, || match unused() {
            true => crate::files::remove_file(&path).map(Some),
            false => Ok(None),
        })?;
        Ok(())
    }

    /// Returns when the blob was stored; `None` if it is not stored.
    pub fn stored_at(&self, digest: &str) -> Option<SystemTime> {
        fs::metadata(self.path(digest).ok()?).ok()?.modified().ok()
    }
}

/// A blob being written: invisible until [`BlobWriter::commit`] or [`BlobWriter::commit_as`],
/// removed if dropped before.
pub(crate) struct BlobWriter {
    file: tempfile::NamedTempFile,
    hash: Sha256,
    size: u64,
    directory: PathBuf,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter {
    /// Stores the blob under the digest of the written bytes, held by `hold`, and returns the digest.
    pub fn commit(self, hold: &ContentHold) -> io::Result<String> {
        let digest = hex_digest(self.hash);
        hold.add(&digest);
        self.file.as_file().sync_data()?;
        self.file.persist(self.directory.join(&digest["sha256:".len()..])).map_err(|e| e.error)?;
        Ok(digest)
    }

    /// Like [`BlobWriter::commit`], but fails unless the written bytes have `digest` and
    /// `size` (0 matches any size).
    pub fn commit_as(self, digest: &str, size: u64, hold: &ContentHold) -> Result<(), ImageError> {
        if size != 0 && self.size != size {
            return Err(ImageError::SizeMismatch {
                digest: digest.to_owned(),
                expected: size,
                actual: self.size,
            });
        }
        let actual = hex_digest(self.hash.clone());
        if actual != digest {
            return Err(ImageError::DigestMismatch { expected: digest.to_owned(), actual });
        }
        self.commit(hold)?;
        Ok(())
    }
}

/// Returns a finished hash as `sha256:HEX`.
pub(crate) fn hex_digest(hash: Sha256) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in hash.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Returns the digest of `bytes` as `sha256:HEX`.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hex_digest(hash)
}
