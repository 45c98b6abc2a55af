//! Fences, which keep a lost cluster from coming back beside the cluster that was recovered from it. A
//! recovered master, and every master that joins it, knows the ids of the clusters that its own replaces,
//! and tells their members so. A member that hears this of its own cluster notes it on disk and never
//! serves again.

use std::path::Path;

use proto_env::Disk;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::consensus::Consensus;

/// File with the clusters that a recovered cluster replaces.
const FENCES_FILE: &str = "recovered.json";
/// File with the reason why this master must not serve any more.
const LEFT_FILE: &str = "left.json";
/// Metadata key of a refusal: the id of the cluster that replaces the caller's.
pub(crate) const SUPERSEDED_KEY: &str = "ephor-superseded-by";

/// The clusters that this one replaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fences {
    /// The ids of the replaced clusters.
    pub supersedes: Vec<String>,
    /// `HOST:PORT` of peer ports of their members, which are told that they are replaced.
    pub tell: Vec<String>,
}

/// Why this master must not serve any more.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    reason: String,
}

impl Fences {
    /// Reads the fences of a data directory; empty if it has none.
    pub fn load(data_dir: &Path, disk: &dyn Disk) -> Result<Self, Error> {
        Ok(read(data_dir, FENCES_FILE, disk)?.unwrap_or_default())
    }

    /// Writes the fences to a data directory.
    pub fn store(&self, data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
        write(data_dir, FENCES_FILE, self, disk)
    }
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(
    dir: &Path,
    name: &str,
    disk: &dyn Disk,
) -> Result<Option<T>, Error> {
    let path = dir.join(name);
    match disk.read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Config(format!("{} is damaged: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Config(format!("{}: {error}", path.display()))),
    }
}

pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, content: &T, disk: &dyn Disk) -> Result<(), Error> {
    let path = dir.join(name);
    let bytes = serde_json::to_vec(content).map_err(|error| Error::Config(error.to_string()))?;
    disk.replace(&path, &bytes).map_err(|error| Error::Config(format!("{}: {error}", path.display())))
}

/// Fails if this data directory's master was told that it must not serve any more.
pub(crate) fn check_not_out(data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
    match read::<Left>(data_dir, LEFT_FILE, disk)? {
        Some(left) => Err(Error::Config(left.reason)),
        None => Ok(()),
    }
}

impl Consensus {
    /// Notes on disk that this master must never serve again, and stops it.
    pub(crate) fn leave(&self, why: &str) {
        if self.stop.is_cancelled() || self.defence.has_failed() {
            return;
        }
        let data_dir = &self.data_dir;
        let reason = format!("{why}: remove {} and join again", data_dir.display());
        tracing::error!(reason, "this master is out and stops");
        let left = Left { reason: reason.clone() };
        if let Err(error) = write(data_dir, LEFT_FILE, &left, self.env.disk.as_ref()) {
            // After a restart the master is told again.
            tracing::error!(%error, "writing that down failed");
        }
        self.defence.fail(reason);
        self.env.shutdown.cancel();
    }

    /// Stops this master for good, because its cluster was replaced by the cluster `by`.
    pub(crate) fn superseded(&self, by: &str) {
        self.leave(&format!(
            "cluster {} was recovered as cluster {by} from another of its masters, and this one must not serve \
             any more",
            self.cluster_id
        ));
    }

    /// Returns the ids of the clusters that this one replaces.
    pub fn supersedes(&self) -> &[String] {
        &self.fences.supersedes
    }
}
