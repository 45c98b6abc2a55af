//! What keeps a lost cluster from coming back beside the one that was recovered
//! from it. A recovered master, and whoever joins it, knows the ids of the
//! clusters that its own goes on for, and tells their members so; who hears that
//! of its own cluster writes it down and never serves again.

use std::path::Path;

use proto_env::Disk;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::consensus::Consensus;

/// What a recovered cluster supersedes.
const FENCES_FILE: &str = "recovered.json";
/// Why this master is out.
const LEFT_FILE: &str = "left.json";
/// Metadata of a refusal: the cluster that goes on in place of the caller's.
pub(crate) const SUPERSEDED_KEY: &str = "ephor-superseded-by";

/// Clusters that this one goes on for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fences {
    /// Their ids.
    pub supersedes: Vec<String>,
    /// `HOST:PORT` of peer ports of their members, who are told.
    pub tell: Vec<String>,
}

/// Why this master may not serve any more.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    reason: String,
}

impl Fences {
    /// Those of a data directory.
    pub fn load(data_dir: &Path, disk: &dyn Disk) -> Result<Self, Error> {
        Ok(read(data_dir, FENCES_FILE, disk)?.unwrap_or_default())
    }

    /// Puts them into a data directory.
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

/// Refuses a data directory whose master was told that it is out.
pub(crate) fn check_not_out(data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
    match read::<Left>(data_dir, LEFT_FILE, disk)? {
        Some(left) => Err(Error::Config(left.reason)),
        None => Ok(()),
    }
}

impl Consensus {
    /// This master is out for good: writes that down and ends.
    pub(crate) fn leave(&self, why: &str) {
        if self.stop.is_cancelled() || !self.failure.borrow().is_empty() {
            return;
        }
        let data_dir = &self.data_dir;
        let reason = format!("{why}: remove {} and join again", data_dir.display());
        tracing::error!(reason, "this master is out and stops");
        let left = Left { reason: reason.clone() };
        if let Err(error) = write(data_dir, LEFT_FILE, &left, self.env.disk.as_ref()) {
            // It will be told again.
            tracing::error!(%error, "writing that down failed");
        }
        self.failure.send_replace(reason);
        self.env.shutdown.cancel();
    }

    /// The cluster of this master goes on as another one, without it.
    pub(crate) fn superseded(&self, by: &str) {
        self.leave(&format!(
            "cluster {} was recovered as cluster {by} from another of its masters, and this one must not serve \
             any more",
            self.cluster_id
        ));
    }

    /// The clusters this one goes on for.
    pub fn supersedes(&self) -> &[String] {
        &self.fences.supersedes
    }
}
