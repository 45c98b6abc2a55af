//! "This is durable", in one place. sled 0.34.7's `flush()` calls
//! `sync_file_range`, which does not wait for the disk's cache or for metadata,
//! and pages above about 128 KiB would lie in blob files that it never syncs
//! (`backend/sled.rs` makes none). So every file and directory of the database is synced after its flush. Called
//! before a log purge, before a snapshot is reported and before a staged state
//! takes the place of the old one.

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
