//! "This is durable", in one place. sled 0.34.7's `flush()` calls
//! `sync_file_range`, which does not wait for the disk's cache or for metadata,
//! and pages above about 128 KiB would lie in blob files that it never syncs
//! (`backend/sled.rs` makes none). So every file and directory of the database is synced after its flush. Called
//! before a log purge, before a snapshot is reported and before a staged state
//! takes the place of the old one.
//!
//! sled also believes its own `sync_file_range` between these: a segment whose
//! pages it has written elsewhere is used again, though a power cut may take the
//! copies and leave the overwritten originals. So in every program that links this,
//! that call is an `fdatasync`. sled makes it once for each buffer, of up to
//! 512 KiB, beside the writes that go on.

use std::path::Path;

use proto_env::Disk;

use crate::{Result, io};

/// Makes everything written to `database`, whose files lie in `directory`,
/// survive a power cut. An error means that nobody knows: stop the node.
pub fn durable(disk: &dyn Disk, database: &sled::Db, directory: &Path) -> Result<()> {
    database.flush()?;
    disk.sync_tree(directory).map_err(io("syncing the object store"))?;
    Ok(())
}

#[allow(unsafe_code, reason = "the C library's function is replaced by a stronger one of the same shape")]
mod stronger {
    use libc::{c_int, c_uint, off64_t};

    /// In place of the C library's, see above.
    #[unsafe(no_mangle)]
    extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _bytes: off64_t, _flags: c_uint) -> c_int {
        // SAFETY: any number may be asked to be synced; one that is no file gives an error.
        unsafe { libc::fdatasync(fd) }
    }

    #[cfg(test)]
    #[test]
    fn it_takes_the_place_of_the_c_library_s() {
        use std::os::fd::AsRawFd;
        let (reader, _writer) = std::io::pipe().unwrap();
        // SAFETY: the descriptor is open. A pipe has no place to seek to for the one, and
        // nothing to sync for the other.
        let result = unsafe { libc::sync_file_range(reader.as_raw_fd(), 0, 0, 0) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((result, error), (-1, Some(libc::EINVAL)));
    }
}
