//! Where the agent remembers what it did to its node: one file a fault, synced
//! before the fault is applied and removed after it was undone. What the journal
//! holds after a crash of the agent is what may have to be undone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::effect::Effect;

/// A fault that is on the node, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Its id, also the name of its file.
    pub id: String,
    /// What was done.
    pub effect: Effect,
    /// When it ends, in milliseconds since the Unix epoch: the wall clock goes on
    /// when the agent does not.
    pub deadline_ms: u64,
    /// How long it was to last, in milliseconds. A wall clock that was set back
    /// does not make it last longer than that from the start of the agent.
    pub limit_ms: u64,
    /// What the counter of its kind stood at before, where that is not the fault's own.
    pub counted: u64,
}

impl Held {
    /// A fault that lasts `limit` from now.
    pub fn begin(id: String, effect: Effect, limit: Duration, counted: u64) -> Self {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Self { id, effect, deadline_ms: now_ms().saturating_add(limit_ms), limit_ms, counted }
    }

    /// How long it lasts from now on.
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.saturating_sub(now_ms()).min(self.limit_ms))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether this can be the id of a fault: part of a file name and of the name of a table.
pub fn is_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=32).contains(&id.len()) && id.bytes().all(plain)
}

/// The directory of the files.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Opens it, and makes the directory if it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// All faults there are, in the order of their ids. A file that was not
    /// written whole is removed: its fault was never applied.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(&self) -> io::Result<Vec<Held>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => all.push(serde_json::from_slice::<Held>(&fs::read(&path)?)?),
                Some("part") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        all.retain(|held| is_id(&held.id));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Writes a fault down for good.
    ///
    /// # Errors
    /// What the file system says; the fault must not be applied then.
    pub fn write(&self, held: &Held) -> io::Result<()> {
        let part = self.directory.join(format!("{}.part", held.id));
        let mut file = File::create(&part)?;
        file.write_all(&serde_json::to_vec(held)?)?;
        file.sync_all()?;
        fs::rename(&part, self.path(&held.id))?;
        self.sync()
    }

    /// Forgets a fault that was undone.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_a_crash_and_halves_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        let held = Held::begin("a_1".to_owned(), Effect::Kill, Duration::from_secs(60), 0);
        journal.write(&held).unwrap();
        fs::write(directory.path().join("b.part"), "{\"id\":").unwrap();
        let again = Journal::open(directory.path()).unwrap();
        assert_eq!(again.read().unwrap(), [held]);
        assert!(!directory.path().join("b.part").exists());
        again.remove("a_1").unwrap();
        again.remove("a_1").unwrap();
        assert_eq!(again.read().unwrap(), []);
    }

    #[test]
    fn a_clock_that_was_set_back_prolongs_nothing_beyond_the_limit() {
        let mut held = Held::begin("a".to_owned(), Effect::Pause, Duration::from_secs(60), 0);
        assert!(held.left() <= Duration::from_secs(60));
        held.deadline_ms += 3_600_000;
        assert_eq!(held.left(), Duration::from_secs(60));
        held.deadline_ms = 0;
        assert_eq!(held.left(), Duration::ZERO);
    }

    #[test]
    fn an_id_is_part_of_a_name_and_nothing_else() {
        assert!(is_id("r7_12"));
        for bad in ["", "../x", "a b", "A", "a-b", &"a".repeat(33)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
