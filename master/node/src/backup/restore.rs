//! Restores a data directory from a bundle; `ephor master` then starts from it as
//! the only master of a new cluster with the objects and keys of the old one.
//!
//! During a restore the directory holds the marker `restoring.json`, and no master
//! starts from it. A restore that finds the marker may begin again: all other files
//! were made after it and are removed first. The marker is removed last, when
//! everything else is durable.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consensus::{MasterAddress, Restore, RestoreTarget, Restored};
use proto_env::{Disk, Env};

use super::bundle::{self, BundleVisitor, Contents};
use super::{BundleManifest, Error, Passphrase, place_error};
use crate::identity::MasterIdentity;
use crate::pki::KeyFiles;
use crate::pki::files::write_private;

/// Name of the marker file of an unfinished restore.
const MARKER: &str = "restoring.json";
/// Amount that revisions are raised by: more than any cluster writes between its last backup
/// and its end, so that no revision a client has seen is used again (etcd calls
/// it `--bump-revision`).
const BUMP: u64 = 1_000_000_000;

/// Options of a restore: its destination, and the new master's name and addresses.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The data directory: empty, or left by an interrupted restore.
    pub data_dir: PathBuf,
    /// The name of the master.
    pub name: String,
    /// `HOST:PORT` of its peer port; empty when unknown, since the master announces it when it starts.
    pub peer_address: String,
    /// `HOST:PORT` of its API port; empty when unknown.
    pub api_address: String,
}

/// Whether a restore into this data directory was begun and not finished.
pub fn unfinished(data_dir: &Path, disk: &dyn Disk) -> bool {
    disk.read(&data_dir.join(MARKER)).is_ok()
}

/// Restores a bundle. Blocks; may be killed at any point and run again.
///
/// # Errors
/// Fails if the directory belongs to something else, or the bundle is damaged: the
/// directory is then left empty.
pub fn restore(
    source: impl Read,
    passphrase: &Passphrase,
    options: &RestoreOptions,
    env: &Env,
) -> Result<(BundleManifest, Restored), Error> {
    let data_dir = &options.data_dir;
    let begun = check_directory(data_dir, env.disk.as_ref())?;
    let mut work = Work { options, env, begun, cluster_id: env.random.uuid(), made: None };
    let result = work.run(source, passphrase);
    if result.is_err() && work.begun {
        // A warning is enough: the marker still prevents a master from starting.
        if let Err(error) = clear(data_dir, env.disk.as_ref()).and_then(|()| unmark(data_dir, env)) {
            tracing::warn!(%error, "what was restored stays, and is removed by the next attempt");
        }
    }
    result
}

/// Whether an interrupted restore left this directory; an error when it holds files of
/// anything else.
fn check_directory(data_dir: &Path, disk: &dyn Disk) -> Result<bool, Error> {
    if unfinished(data_dir, disk) {
        return Ok(true);
    }
    let names = match disk.list(data_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(|error| place_error(data_dir.display(), error))?,
    };
    // The marker's temporary file, left by a kill before its rename.
    let ours = format!("{MARKER}.new");
    match names.iter().find(|name| **name != ours && *name != "lost+found") {
        None => Ok(false),
        Some(name) => Err(Error::Refused(format!(
            "{} is not empty (it holds {name}): a restore makes a new data directory and replaces nothing",
            data_dir.display()
        ))),
    }
}

/// Removes everything but the marker from the directory.
fn clear(data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
    let failed = |error| place_error(data_dir.display(), error);
    for name in disk.list(data_dir).map_err(failed)? {
        let path = data_dir.join(&name);
        if name == MARKER || name == "lost+found" {
            continue;
        }
        let is_directory = disk.list(&path).is_ok();
        if is_directory { disk.remove_dir_all(&path) } else { disk.remove(&path) }.map_err(failed)?;
    }
    Ok(())
}

fn unmark(data_dir: &Path, env: &Env) -> Result<(), Error> {
    let path = data_dir.join(MARKER);
    env.disk.remove(&path).map_err(|error| place_error(path.display(), error))
}

/// A restore in progress.
struct Work<'a> {
    options: &'a RestoreOptions,
    env: &'a Env,
    /// Whether the marker was written.
    begun: bool,
    /// Id of the new cluster.
    cluster_id: String,
    made: Option<(Restore, Contents)>,
}

impl Work<'_> {
    fn run(
        &mut self,
        source: impl Read,
        passphrase: &Passphrase,
    ) -> Result<(BundleManifest, Restored), Error> {
        let manifest = bundle::read(source, passphrase, self)?;
        let (made, contents) =
            self.made.take().ok_or_else(|| Error::Damaged("it holds no snapshot".to_owned()))?;
        let restored = made.finish(BUMP)?;
        bundle::matches(&manifest, restored.revision_before, restored.objects)?;
        let (data_dir, disk) = (&self.options.data_dir, &self.env.disk);
        KeyFiles::new(data_dir, disk.clone()).store(&contents.keys)?;
        let identity = MasterIdentity {
            node_id: restored.node_id,
            cluster_id: self.cluster_id.clone(),
            settings: contents.settings,
            keys: Arc::new(contents.keys),
            founding: false,
            started_before: true,
            // The cluster that was backed up may still run: a copy of it must not stop it.
            supersedes: Vec::new(),
        };
        identity.started(data_dir, disk.as_ref())?;
        disk.sync_tree(data_dir).map_err(|error| place_error(data_dir.display(), error))?;
        unmark(data_dir, self.env)?;
        self.begun = false;
        Ok((manifest, restored))
    }

    /// Writes the marker, then removes what an earlier attempt left.
    fn begin(&mut self, from: &str) -> Result<(), Error> {
        let (data_dir, disk) = (&self.options.data_dir, self.env.disk.as_ref());
        let path = data_dir.join(MARKER);
        let text = serde_json::json!({ "from": from, "clusterId": self.cluster_id }).to_string();
        write_private(disk, &path, text.as_bytes()).map_err(|error| place_error(path.display(), error))?;
        self.begun = true;
        clear(data_dir, disk)
    }
}

impl BundleVisitor for Work<'_> {
    fn contents(&mut self, contents: Contents) -> Result<(), Error> {
        self.begin(&contents.head.cluster_id)?;
        let target = RestoreTarget {
            data_dir: self.options.data_dir.clone(),
            cluster_id: self.cluster_id.clone(),
            data_key: *contents.keys.data_key,
            address: MasterAddress {
                name: self.options.name.clone(),
                peer_address: self.options.peer_address.clone(),
                api_address: self.options.api_address.clone(),
                replaces: 0,
            },
        };
        self.made = Some((Restore::begin(target, self.env.clone())?, contents));
        Ok(())
    }

    fn frame(&mut self, frame: &[u8]) -> Result<(), Error> {
        match &mut self.made {
            Some((made, _)) => Ok(made.push(frame)?),
            None => Err(Error::Damaged("its snapshot comes too early".to_owned())),
        }
    }
}
