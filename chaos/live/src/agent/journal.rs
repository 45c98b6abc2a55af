//! The agent's journal of faults on its node: one file per fault, synced before the fault is applied and
//! removed after it was undone. What the journal holds after a crash of the agent may have to be undone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::effect::Effect;

/// A fault that is applied to the node, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Id of the fault, also the name of its file.
    pub id: String,
    /// What is done to the node.
    pub effect: Effect,
    /// Deadline of the fault, in milliseconds since the Unix epoch: the wall clock goes on when the agent
    /// does not run.
    pub deadline_ms: u64,
    /// Duration of the fault, in milliseconds. After the wall clock was set back, the fault lasts at most
    /// this long from the start of the agent.
    pub limit_ms: u64,
    /// Value of the node's counter before the fault; 0 if the fault has a counter of its own.
    pub counted: u64,
}

impl Held {
    /// Creates the record of a fault that lasts `limit` from now.
    pub fn begin(id: String, effect: Effect, limit: Duration, counted: u64) -> Self {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Self { id, effect, deadline_ms: now_ms().saturating_add(limit_ms), limit_ms, counted }
    }

    /// Returns how long the fault still lasts.
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.saturating_sub(now_ms()).min(self.limit_ms))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns whether `id` can be the id of a fault: it becomes part of a file name and of a table's name.
pub fn is_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=32).contains(&id.len()) && id.bytes().all(plain)
}

/// Directory with one file per fault.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Opens the journal; creates the directory if it is missing.
    ///
    /// # Errors
    /// Fails with the file system's error.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Reads all faults, in the order of their ids. Removes files that were not written completely: their
    /// faults were never applied.
    ///
    /// # Errors
    /// Fails with the file system's error.
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

    /// Writes a fault durably.
    ///
    /// # Errors
    /// Fails with the file system's error; the fault must then not be applied.
    pub fn write(&self, held: &Held) -> io::Result<()> {
        let part = self.directory.join(format!("{}.part", held.id));
        let mut file = File::create(&part)?;
        file.write_all(&serde_json::to_vec(held)?)?;
        file.sync_all()?;
        fs::rename(&part, self.path(&held.id))?;
        self.sync()
    }

    /// Removes a fault that was undone.
    ///
    /// # Errors
    /// Fails with the file system's error.
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
