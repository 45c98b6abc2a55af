//! States in sled, encrypted: a record's key on disk is a keyed hash, its value
//! seals the real key and value together. A home is a directory with one
//! database directory per state and a file `CURRENT` that names the one in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto_env::Disk;

use super::{Backend, Batch, Home, Table, Visitor};
use crate::crypto::Sealer;
use crate::durable::durable;
use crate::{Error, Result, codec, io};

/// Page cache of sled, in bytes. Live objects are in memory already.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
const CURRENT: &str = "CURRENT";

/// A directory of sled databases.
pub struct SledHome {
    directory: PathBuf,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
}

/// One database.
pub struct SledBackend {
    database: sled::Db,
    directory: PathBuf,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
}

// === impl SledHome ===

impl SledHome {
    /// The home in `directory`, which is made when it is not there.
    pub fn new(directory: &Path, sealer: Sealer, disk: Arc<dyn Disk>) -> Result<Self> {
        disk.create_dir_all(directory).map_err(io("making the state directory"))?;
        Ok(Self { directory: directory.to_owned(), sealer: Arc::new(sealer), disk })
    }

    fn current(&self) -> Result<Option<String>> {
        match self.disk.read(&self.directory.join(CURRENT)) {
            Ok(bytes) => Ok(Some(
                String::from_utf8(bytes)
                    .map_err(|error| Error::Damaged { what: "CURRENT", reason: error.to_string() })?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("reading CURRENT")(error)),
        }
    }

    fn states(&self) -> Result<Vec<String>> {
        let mut names = self.disk.list(&self.directory).map_err(io("listing states"))?;
        names.retain(|name| name.starts_with("state-"));
        Ok(names)
    }

    fn database(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let directory = self.directory.join(name);
        self.disk.create_dir_all(&directory).map_err(io("making a state"))?;
        let database =
            sled::Config::new().path(&directory).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
        let (sealer, disk) = (self.sealer.clone(), self.disk.clone());
        Ok(Arc::new(SledBackend { database, directory, sealer, disk }))
    }
}

impl Home for SledHome {
    fn open(&self) -> Result<Arc<dyn Backend>> {
        let current = match self.current()? {
            Some(current) => current,
            None => {
                let first = "state-1".to_owned();
                // Durable as an empty state before CURRENT names it.
                self.database(&first)?.sync()?;
                self.adopt(&first)?;
                first
            }
        };
        for name in self.states()?.iter().filter(|name| **name != current) {
            self.discard(name)?;
        }
        self.database(&current)
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
        self.disk.replace(&path, name.as_bytes()).map_err(io("replacing CURRENT"))
    }

    fn discard(&self, name: &str) -> Result<()> {
        if self.current()?.as_deref() == Some(name) {
            return Ok(());
        }
        self.disk.remove_dir_all(&self.directory.join(name)).map_err(io("removing a state"))
    }
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
    /// The table's letter, then a keyed hash of table and key.
    fn disk_key(&self, table: Table, key: &[u8]) -> Vec<u8> {
        let letter = table_byte(table);
        let mut name = vec![letter];
        name.extend_from_slice(key);
        let mut out = vec![letter];
        out.extend_from_slice(&self.sealer.hide(&name));
        out
    }
}

impl Backend for SledBackend {
    fn load(&self, visit: Visitor<'_>) -> Result<()> {
        for record in self.database.iter() {
            let (disk_key, sealed) = record?;
            let table = disk_key.first().copied().and_then(table_of).ok_or_else(|| Error::Damaged {
                what: "an object store record",
                reason: "it is in no known table".to_owned(),
            })?;
            let plain = self.sealer.open("an object store record", &disk_key, &sealed)?;
            let (key, value): (Vec<u8>, Vec<u8>) = codec::decode("an object store record", &plain)?;
            visit(table, &key, value)?;
        }
        Ok(())
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut changes = sled::Batch::default();
        for change in batch.changes {
            let disk_key = self.disk_key(change.table, &change.key);
            match change.value {
                Some(value) => {
                    let plain = codec::encode("an object store record", &(change.key, value))?;
                    let sealed = self.sealer.seal(&disk_key, &plain)?;
                    changes.insert(disk_key, sealed);
                }
                None => changes.remove(disk_key),
            }
        }
        Ok(self.database.apply_batch(changes)?)
    }

    fn sync(&self) -> Result<()> {
        durable(self.disk.as_ref(), &self.database, &self.directory)
    }
}
