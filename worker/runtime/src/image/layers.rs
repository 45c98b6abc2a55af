//! Unpacked layers, one directory each, named after their chain (OCI image-spec "ChainID").
//!
//! The names are short and mounts are made from within the directory, so that many lower
//! directories fit into the one page that mount(2) takes options from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ImageError;
use super::budget::Budget;
use super::content::{Blobs, digest_of};
use super::hold::{Hold, Holds};
use super::reference::is_digest;
use super::unpack::{Unpacked, unpack};
use crate::config::ImageLimits;
use crate::files;

/// Hexadecimal digits of a chain id in a directory's name: 96 bits.
const NAME_LENGTH: usize = 24;

#[derive(Serialize, Deserialize)]
struct Record {
    chain_id: String,
    content: Unpacked,
}

/// The directory's name for a chain of layers.
fn name_of(chain: &str) -> Result<String, ImageError> {
    let hex = Some(chain).filter(|c| is_digest(c)).and_then(|c| c.strip_prefix("sha256:"));
    let name = hex.and_then(|hex| hex.get(..NAME_LENGTH));
    name.map(str::to_owned)
        .ok_or_else(|| ImageError::Invalid(format!("invalid diff_id \"{chain}\" in the image configuration")))
}

/// The unpacked layers of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    directory: PathBuf,
}

/// One layer to be there: its blob and the digest of its plain tar.
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

    /// The directory that the names of [`Layers::ensure`] are relative to.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unpacks what is not unpacked yet and returns the layers' names, lowest first. Blocks.
    pub fn ensure(
        &self,
        blobs: &Blobs,
        sources: &[LayerSource],
        limits: &ImageLimits,
        hold: &Hold,
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
        // A layer is trusted after a restart because it has its name: its files must be on disk before.
        let handle = fs::File::open(&self.directory)?;
        nix::unistd::syncfs(&handle).map_err(io::Error::from)?;
        match fs::rename(temporary.path(), self.directory.join(name)) {
            // Another pull was faster with the same layer.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(())
            }
            other => {
                other?;
                // The directory is no longer where its guard would remove it.
                let _ = temporary.keep();
                Ok(handle.sync_all()?)
            }
        }
    }

    /// Bytes and entries of all layers, as counted when they were unpacked.
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

    /// The names of all layers.
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

    /// Removes a layer that nobody holds and for which `unused` says so. It loses its name first, so that
    /// what remains after a crash is rubbish, not half a layer.
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

    /// When the layer was unpacked, if it is here.
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
