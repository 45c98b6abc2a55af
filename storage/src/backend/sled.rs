//! States stored in sled, with encrypted values. Records are stored in the order of their keys, so that
//! records written together are neighbours; keys are not encrypted, and `store/records.rs` makes keys that
//! hold no secret. A home is a directory with one database directory per state and a file `CURRENT` that
//! names the current state.
//!
//! Values are cut into pieces, so that no page grows so large that sled 0.34.7 puts it into a file of its
//! own (a blob). sled never syncs such files, and when one cannot be written because the disk is full, sled
//! waits for ever and blocks every other database of the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto_env::Disk;

use super::write_behind::WriteBehind;
use super::{Backend, Batch, Home, Table, Visitor};
use crate::crypto::Sealer;
use crate::durable::durable;
use crate::store::lock;
use crate::{Error, Result, io};

/// Bytes of sled's page cache, which can be small because live objects are in memory already.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum bytes of one value in sled. About sixteen such values share a page; a value of 128 KiB would be
/// a blob.
const PIECE_BYTES: usize = 4 * 1024;
/// Maximum time to wait for a locked database before failing.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const CURRENT: &str = "CURRENT";

/// A directory of sled databases.
pub struct SledHome {
    directory: PathBuf,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
}

/// One sled database, which holds one state.
pub struct SledBackend {
    /// The database; `None` only while this is dropped.
    database: Option<sled::Db>,
    retired: AtomicBool,
    /// Number of pieces of each record that has more than one, by its key on disk, so that replacing a
    /// record need not query the database. `None` until the database was loaded.
    several: Mutex<Option<Counts>>,
    directory: PathBuf,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
}

type Counts = BTreeMap<Vec<u8>, u32>;

// === impl SledHome ===

impl SledHome {
    /// Makes the home in `directory`, which is created if missing.
    pub fn new(directory: &Path, sealer: Sealer, disk: Arc<dyn Disk>) -> Result<Self> {
        disk.create_dir_all(directory).map_err(io("making the state directory"))?;
        Ok(Self { directory: directory.to_owned(), sealer: Arc::new(sealer), disk })
    }

    fn current(&self) -> Result<Option<String>> {
        match self.disk.read(&self.directory.join(CURRENT)) {
            Ok(bytes) => self.checked_current(&bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("reading CURRENT")(error)),
        }
    }

    /// Checks the content of `CURRENT` and returns the name of the state. With a wrong name an empty state
    /// would be opened and the right one removed.
    fn checked_current(&self, bytes: &[u8]) -> Result<String> {
        let damaged = |reason: &str| Error::Damaged { what: "CURRENT", reason: reason.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        // Files of earlier versions hold only the name.
        let (name, sum) = text.split_once('\n').map_or((text, None), |(name, sum)| (name, Some(sum)));
        if sum.is_some_and(|sum| sum != checksum(name)) {
            return Err(damaged("its checksum does not match"));
        }
        if !self.states()?.iter().any(|state| state == name) {
            return Err(damaged("it names a state that does not exist"));
        }
        Ok(name.to_owned())
    }

    fn states(&self) -> Result<Vec<String>> {
        let mut names = self.disk.list(&self.directory).map_err(io("listing states"))?;
        names.retain(|name| name.starts_with("state-"));
        Ok(names)
    }

    fn database(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let directory = self.directory.join(name);
        self.disk.create_dir_all(&directory).map_err(io("making a state"))?;
        // Data that a killed process wrote may be only in the page cache, and sled builds on what it reads.
        self.disk.sync_tree(&directory).map_err(io("syncing a state"))?;
        let database = open_database(&directory)?;
        let (sealer, disk) = (self.sealer.clone(), self.disk.clone());
        // An empty database has no record of several pieces.
        let several = Mutex::new(database.is_empty().then(Counts::default));
        let (database, retired) = (Some(database), AtomicBool::new(false));
        let backend = SledBackend { database, retired, several, directory, sealer, disk };
        Ok(Arc::new(WriteBehind::new(Arc::new(backend))?))
    }
}

impl Home for SledHome {
    fn open(&self) -> Result<Arc<dyn Backend>> {
        let (current, database) = match self.current()? {
            Some(current) => (current, None),
            None => {
                let first = "state-1".to_owned();
                let database = self.database(&first)?;
                // The empty state must be durable before `CURRENT` names it.
                database.sync()?;
                self.adopt(&first)?;
                (first, Some(database))
            }
        };
        for name in self.states()?.iter().filter(|name| **name != current) {
            self.disk.remove_dir_all(&self.directory.join(name)).map_err(io("removing a state"))?;
        }
        database.map_or_else(|| self.database(&current), Ok)
    }

    fn stage(&self) -> Result<(String, Arc<dyn Backend>)> {
        let number = |name: &String| name.strip_prefix("state-").and_then(|it| it.parse::<u64>().ok());
        let last = self.states()?.iter().filter_map(number).max().unwrap_or(0);
        let name = format!("state-{}", last + 1);
        let backend = self.database(&name)?;
        Ok((name, backend))
    }

    fn adopt(&self, name: &str) -> Result<()> {
        let path = self.directory.join(CURRENT);
        let content = format!("{name}\n{}", checksum(name));
        self.disk.replace(&path, content.as_bytes()).map_err(io("replacing CURRENT"))
    }
}

/// Returns the checksum of a state's name, for `CURRENT`.
fn checksum(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..16].to_owned()
}

/// Opens a database, and waits while it is locked: sled's own threads release a closed database a little
/// after it was dropped, and the lock of a killed process ends when the kernel has cleaned the process up.
fn open_database(directory: &Path) -> Result<sled::Db> {
    let config = sled::Config::new().path(directory).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return Ok(opened?),
        }
    }
}

/// Returns whether the error means that the database is locked, which sled reports only in the error's
/// text.
fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

// === impl SledBackend ===

fn table_byte(table: Table) -> u8 {
    match table {
        Table::Objects => b'o',
        Table::Recent => b'r',
        Table::Meta => b'm',
    }
}

fn table_of(byte: u8) -> Option<Table> {
    [Table::Objects, Table::Recent, Table::Meta].into_iter().find(|table| table_byte(*table) == byte)
}

impl SledBackend {
    fn database(&self) -> Result<&sled::Db> {
        self.database.as_ref().ok_or_else(|| damaged("its database is closed"))
    }

    fn write_pieces(&self, batch: Batch, several: Option<&mut Counts>) -> Result<()> {
        let database = self.database()?;
        let (pieces, written) = Default::default();
        let mut pieces = BatchBuilder { database, batch: pieces, several, written };
        for change in batch.changes {
            let disk_key = disk_key(change.table, &change.key)?;
            let sealed = change.value.map(|value| self.sealer.seal(&disk_key, &value)).transpose()?;
            pieces.replace(disk_key, sealed.as_deref())?;
        }
        Ok(database.apply_batch(pieces.batch)?)
    }
}

/// Returns the table's letter, the length of the key, and the key: so no other key sorts between the pieces
/// of a record.
fn disk_key(table: Table, key: &[u8]) -> Result<Vec<u8>> {
    let length = u8::try_from(key.len()).map_err(|_| Error::TooLarge { what: "a record's key" })?;
    Ok([&[table_byte(table), length], key].concat())
}

/// Splits a key made by [`disk_key`] into its table and key.
fn table_and_key(disk_key: &[u8]) -> Result<(Table, &[u8])> {
    let [letter, length, key @ ..] = disk_key else { return Err(damaged("its key is too short")) };
    let table = table_of(*letter).ok_or_else(|| damaged("it is in no known table"))?;
    if key.len() != usize::from(*length) {
        return Err(damaged("its key has another length than it says; was it written by another version?"));
    }
    Ok((table, key))
}

fn damaged(reason: &str) -> Error {
    Error::Damaged { what: "an object store record", reason: reason.to_owned() }
}

/// Returns the key of one piece; the pieces of a record are neighbours, in order.
fn piece_key(disk_key: &[u8], number: u32) -> Vec<u8> {
    let mut key = disk_key.to_vec();
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Splits a first piece into the number of pieces it announces and its own bytes.
fn first_piece(piece: &[u8]) -> Result<(u32, &[u8])> {
    let (count, bytes) = piece.split_first_chunk::<4>().ok_or_else(|| damaged("its head is too short"))?;
    Ok((u32::from_be_bytes(*count), bytes))
}

/// Collects a batch, with values cut into pieces.
struct BatchBuilder<'a> {
    database: &'a sled::Db,
    batch: sled::Batch,
    /// Number of pieces of each record that has more than one; `None`: the database has to be queried.
    several: Option<&'a mut Counts>,
    /// The same for the records written by this batch, added to `several` once the batch is complete.
    written: Counts,
}

impl BatchBuilder<'_> {
    /// Replaces a record by `sealed`; `None` removes it.
    fn replace(&mut self, disk_key: Vec<u8>, sealed: Option<&[u8]>) -> Result<()> {
        let before = self.count(&disk_key)?;
        let chunks: Vec<&[u8]> = sealed.map_or(Vec::new(), |sealed| sealed.chunks(PIECE_BYTES).collect());
        let count = u32::try_from(chunks.len()).map_err(|_| Error::TooLarge { what: "a record" })?;
        for (number, chunk) in (0..).zip(chunks) {
            let head = if number == 0 { count.to_be_bytes().to_vec() } else { Vec::new() };
            self.batch.insert(piece_key(&disk_key, number), [&head, chunk].concat());
        }
        for number in count..before {
            self.batch.remove(piece_key(&disk_key, number));
        }
        match &mut self.several {
            None => drop(self.written.insert(disk_key, count)),
            Some(several) if count > 1 => drop(several.insert(disk_key, count)),
            Some(several) => drop(several.remove(&disk_key)),
        }
        Ok(())
    }

    /// Returns the record's number of pieces; may be 1 for a record that does not exist.
    fn count(&self, disk_key: &[u8]) -> Result<u32> {
        if let Some(several) = &self.several {
            return Ok(several.get(disk_key).copied().unwrap_or(1));
        }
        if let Some(count) = self.written.get(disk_key) {
            return Ok(*count);
        }
        match self.database.get(piece_key(disk_key, 0))? {
            Some(first) => Ok(first_piece(&first)?.0),
            None => Ok(0),
        }
    }
}

impl Backend for SledBackend {
    fn load(&self, visit: Visitor<'_>) -> Result<()> {
        // Locked while loading: a record written meanwhile would not be counted.
        let mut known = lock(&self.several);
        let mut pieces = self.database()?.iter();
        let mut several = Counts::default();
        while let Some(piece) = pieces.next() {
            let (key, first) = piece?;
            let (disk_key, number) =
                key.split_last_chunk::<4>().ok_or_else(|| damaged("its key is too short"))?;
            if *number != [0; 4] {
                return Err(damaged("its first piece is missing"));
            }
            let (table, record) = table_and_key(disk_key)?;
            let (count, bytes) = first_piece(&first)?;
            if count > 1 {
                several.insert(disk_key.to_vec(), count);
            }
            let mut sealed = bytes.to_vec();
            for number in 1..count {
                let (key, bytes) = pieces.next().ok_or_else(|| damaged("its end is missing"))??;
                if *key != *piece_key(disk_key, number) {
                    return Err(damaged("a piece is missing"));
                }
                sealed.extend_from_slice(&bytes);
            }
            visit(table, record, self.sealer.open("an object store record", disk_key, &sealed)?)?;
        }
        *known = Some(several);
        Ok(())
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut several = lock(&self.several);
        let written = self.write_pieces(batch, several.as_mut());
        if written.is_err() {
            // After a failed write only the database knows the number of pieces.
            *several = None;
        }
        written
    }

    fn sync(&self) -> Result<()> {
        durable(self.disk.as_ref(), self.database()?, &self.directory)
    }

    fn is_full(&self) -> bool {
        false
    }

    fn disk_bytes(&self) -> u64 {
        self.database().ok().and_then(|database| database.size_on_disk().ok()).unwrap_or_default()
    }

    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

impl Drop for SledBackend {
    /// Closes the database before its files are removed, because sled writes remaining data when it is
    /// closed.
    fn drop(&mut self) {
        drop(self.database.take());
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = self.disk.remove_dir_all(&self.directory)
        {
            tracing::warn!(%error, directory = %self.directory.display(), "a state stays on disk until the next start");
        }
    }
}
