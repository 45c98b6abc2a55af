//! Makes a sled database durable. sled 0.34.7's `flush()` calls `sync_file_range`, which does not wait for
//! the disk's cache or for metadata, and it never syncs the blob files of pages above about 128 KiB
//! (`backend/sled.rs` avoids such pages). So every file and directory of the database is synced after its
//! flush. Called before a log purge, before a snapshot is reported and before a staged state replaces the
//! old one.
//!
//! Between these calls sled also relies on its own `sync_file_range`: it reuses a segment once it has
//! written that segment's pages elsewhere, though a power cut may lose the copies when the originals are
//! already overwritten. So in every program that links this crate, that call is an `fdatasync`. sled makes
//! it once for each buffer of up to 512 KiB, and other writes go on meanwhile.

use std::path::Path;

use proto_env::Disk;

use crate::{Result, io};

/// Makes everything written to `database`, whose files are in `directory`, survive a power cut. After an
/// error it is not known what is durable: stop the node.
pub fn durable(disk: &dyn Disk, database: &sled::Db, directory: &Path) -> Result<()> {
    database.flush()?;
    disk.sync_tree(directory).map_err(io("syncing the object store"))?;
    Ok(())
}

#[allow(unsafe_code, reason = "the C library's function is replaced by a stronger one of the same shape")]
mod stronger {
    use libc::{c_int, c_uint, off64_t};

    /// Replaces the C library's function; the reason is at the head of this file.
    #[unsafe(no_mangle)]
    extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _bytes: off64_t, _flags: c_uint) -> c_int {
        // SAFETY: `fdatasync` takes any number; one that is not a file descriptor gives an error.
        unsafe { libc::fdatasync(fd) }
    }

    #[cfg(test)]
    #[test]
    fn it_takes_the_place_of_the_c_library_s() {
        use std::os::fd::AsRawFd;
        let (reader, _writer) = std::io::pipe().unwrap();
        // SAFETY: the descriptor is open. On a pipe `sync_file_range` fails because a pipe has no offset,
        // `fdatasync` because a pipe cannot be synced; the errors differ.
        let result = unsafe { libc::sync_file_range(reader.as_raw_fd(), 0, 0, 0) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((result, error), (-1, Some(libc::EINVAL)));
    }
}
