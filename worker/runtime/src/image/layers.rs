//! Unpacked layers: one directory for each, named after its ChainID (OCI image-spec).
//!
//! The names are short and mounts are made from within the directory, so that the names of many lower
//! directories fit into the one page of options that mount(2) accepts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ImageError;
use super::budget::Budget;
use super::content::{Blobs, digest_of};
use super::hold::{ContentHold, Holds};
use super::reference::is_digest;
use super::unpack::{Unpacked, unpack};
use crate::config::ImageLimits;
use crate::files;

/// Number of hexadecimal digits (96 bits) of a chain id used in a directory's name.
const NAME_LENGTH: usize = 24;

#[derive(Serialize, Deserialize)]
struct Record {
    chain_id: String,
    content: Unpacked,
}

/// Returns the directory name for a layer's chain id.
fn name_of(chain: &str) -> Result<String, ImageError> {
    let hex = Some(chain).filter(|c| is_digest(c)).and_then(|c| c.strip_prefix("sha256:"));
    let name = hex.and_then(|hex| hex.get(..NAME_LENGTH));
    name.map(str::to_owned)
        .ok_or_else(|| ImageError::Invalid(format!("invalid diff_id \"{chain}\" in the image configuration")))
}

/// Store of the unpacked layers of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    directory: PathBuf,
}

/// A layer to unpack: its blob and the digest of its uncompressed tar.
pub(crate) struct LayerSource {
    pub blob: String,
    pub diff_id: String,
}

impl Layers {
    pub fn open(root: &Path) -> io::Result<Self> {
        let layers = Self { directory: root.join("layers") };
        files::make_private_directory(&layers.directory)?;
        for entry in fs::read_dir(&layers.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".unpack-") {
                files::remove_tree(&entry.path())?;
            }
        }
        Ok(layers)
    }

    /// Returns the directory that the names of [`Layers::ensure`] are relative to.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unpacks the layers that are not unpacked yet and returns all names, lowest first. Blocks.
    pub fn ensure(
        &self,
        blobs: &Blobs,
        sources: &[LayerSource],
        limits: &ImageLimits,
        hold: &ContentHold,
    ) -> Result<Vec<String>, ImageError> {
        let budget = Arc::new(Budget::new(&self.directory, limits.image_bytes, limits.image_entries)?);
        let mut names: Vec<String> = Vec::with_capacity(sources.len());
        let mut chain = String::new();
        for source in sources {
            chain = match chain.is_empty() {
                true => source.diff_id.clone(),
                false => digest_of(format!("{chain} {}", source.diff_id).as_bytes()),
            };
            let name = name_of(&chain)?;
            hold.add(&name);
            if !self.has(&name, &chain)? {
                let parents: Vec<PathBuf> = names.iter().rev().map(|n| self.content(n)).collect();
                self.add(&name, &chain, blobs, source, &parents, (limits, &budget))?;
            }
            names.push(name);
        }
        Ok(names)
    }

    fn content(&self, name: &str) -> PathBuf {
        self.directory.join(name).join("fs")
    }

    fn has(&self, name: &str, chain: &str) -> Result<bool, ImageError> {
        match files::read_json::<Record>(&self.directory.join(name).join("layer.json"))? {
            Some(record) if record.chain_id == chain => Ok(true),
            Some(_) => Err(ImageError::Invalid(format!("layer {chain} collides with another one"))),
            None => Ok(false),
        }
    }

    fn add(
        &self,
        name: &str,
        chain: &str,
        blobs: &Blobs,
        source: &LayerSource,
        parents: &[PathBuf],
        (limits, budget): (&ImageLimits, &Arc<Budget>),
    ) -> Result<(), ImageError> {
        let temporary = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&self.directory)?;
        files::make_private_directory(temporary.path())?;
        let target = temporary.path().join("fs");
        fs::create_dir(&target)?;
        fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let content =
            unpack(blobs.open_blob(&source.blob)?, &target, parents, &source.diff_id, limits, budget)?;
        let record = Record { chain_id: chain.to_owned(), content };
        files::write_json(&temporary.path().join("layer.json"), &record)?;
        // A layer with its final name is trusted after a restart: its files must be on disk before the
        // rename.
        let handle = fs::File::open(&self.directory)?;
        nix::unistd::syncfs(&handle).map_err(io::Error::from)?;
        match fs::rename(temporary.path(), self.directory.join(name)) {
            // Another pull has unpacked the same layer first.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(())
            }
            other => {
                other?;
                // After the rename the temporary directory's guard must not try to remove it.
                let _ = temporary.keep();
                Ok(handle.sync_all()?)
            }
        }
    }

    /// Returns bytes and entries of all layers, as counted when they were unpacked.
    pub fn usage(&self) -> io::Result<Unpacked> {
        let mut total = Unpacked::default();
        for name in self.list()? {
            if let Some(record) = files::read_json::<Record>(&self.directory.join(name).join("layer.json"))? {
                total.bytes += record.content.bytes;
                total.entries += record.content.entries;
            }
        }
        Ok(total)
    }

    /// Returns the names of all layers.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes a layer that no work holds and for which `unused` returns true. Renames it to a temporary name
    /// first, so that a crash does not leave an incomplete layer under its name.
    pub fn remove(&self, name: &str, holds: &Holds, unused: impl FnOnce() -> bool) -> io::Result<()> {
        let rubbish = self.directory.join(format!(".unpack-removed-{name}"));
        let renamed = holds.unless_held(name, || {
            if !unused() {
                return Ok(None);
            }
            match fs::rename(self.directory.join(name), &rubbish) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            }
        })?;
        match renamed {
            Some(()) => files::remove_tree(&rubbish),
            None => Ok(()),
        }
    }

    /// Returns when the layer was unpacked; `None` if it is not stored.
    pub fn unpacked_at(&self, name: &str) -> Option<SystemTime> {
        fs::metadata(self.directory.join(name).join("layer.json")).ok()?.modified().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_diff_id_is_an_error() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (blobs, layers) = (Blobs::open(directory.path()), Layers::open(directory.path()));
        let (blobs, layers) = (blobs.expect("blobs"), layers.expect("layers"));
        for odd in
            ["", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "ä", "sha256:../../x"]
        {
            let source = LayerSource { blob: digest_of(b""), diff_id: odd.to_owned() };
            let hold = blobs.holds().hold();
            let outcome = layers.ensure(&blobs, &[source], &ImageLimits::default(), &hold);
            assert!(matches!(outcome, Err(ImageError::Invalid(_))), "{odd}: {outcome:?}");
        }
    }
}
