//! The image store's table: which name stands for which image, and which blobs and layers each image has.
//!
//! Loads and pulls hold the content that they add or need until the table lists it (`hold`). A
//! removal collects the content that no image, container or running load or pull refers to any
//! more. Neither waits for the other. Content fetched by a failed pull stays for the next attempt,
//! and is collected after an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::archive::{ArchivedImage, ingest};
use super::budget::Budget;
use super::content::Blobs;
use super::document::{ImageConfig, ImageManifest, ManifestOrIndex, parse, parse_document};
use super::hold::ContentHold;
use super::layers::{LayerSource, Layers};
use super::pull::{PullProgress, Puller, RegistryCredentials};
use super::{ImageError, Reference};
use crate::config::{ImageLimits, Registries};
use crate::files;

const TABLE: &str = "images.json";
/// Time for which content that no image needs is kept for a repeated pull.
const STALE: Duration = Duration::from_secs(3600);

/// A stored image with all its layers unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration, `sha256:HEX`.
    pub id: String,
    /// Full names with a tag.
    pub references: Vec<String>,
    /// Full names with a digest.
    pub digests: Vec<String>,
    /// Total size of the image's blobs in bytes.
    pub size: u64,
    pub(crate) config: ImageConfig,
    /// Names of the unpacked layers, lowest first.
    pub(crate) layers: Vec<String>,
}

impl Image {
    /// Returns the image's name in a container's status: a name by digest, or the id if there is none.
    pub(crate) fn reference(&self) -> String {
        self.digests.first().unwrap_or(&self.id).clone()
    }
}

/// Disk space taken by images.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageDiskUsage {
    /// Bytes of all blobs and unpacked layers.
    pub bytes: u64,
    /// Number of files in the unpacked layers.
    pub inodes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Table {
    /// Id of the image that each full name (by tag or digest) refers to.
    names: BTreeMap<String, String>,
    /// Blobs, layers and other data of each image, by image id.
    images: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    config: ImageConfig,
    blobs: BTreeSet<String>,
    layers: Vec<String>,
    size: u64,
}

impl Table {
    /// Returns whether any image needs the blob or layer.
    fn needs(&self, name: &str) -> bool {
        self.images.values().any(|e| e.blobs.contains(name) || e.layers.iter().any(|layer| layer == name))
    }
}

/// The image store of one runtime. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    blobs: Blobs,
    layers: Layers,
    limits: ImageLimits,
    registries: Registries,
    table: Mutex<Table>,
}

impl ImageStore {
    /// Opens the store below `root`; creates it if it does not exist.
    pub fn open(root: &Path, limits: ImageLimits, registries: Registries) -> io::Result<Self> {
        files::make_private_directory(root)?;
        let blobs = Blobs::open(root)?;
        let layers = Layers::open(root)?;
        let table = files::read_json(&root.join(TABLE))?.unwrap_or_default();
        let table = Mutex::new(table);
        let inner = Inner { root: root.to_owned(), blobs, layers, limits, registries, table };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the directory that the names in [`Image`]'s `layers` are relative to.
    pub(crate) fn layers_directory(&self) -> &Path {
        self.inner.layers.directory()
    }

    /// Returns the root directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Returns the budget for an archive that is written to disk before [`ImageStore::load`].
    pub(crate) fn spool_budget(&self) -> io::Result<Budget> {
        Budget::new(self.inner.blobs.ingest_directory(), self.inner.limits.archive_bytes, 1)
    }

    /// Creates a temporary file for an archive that is written to disk before [`ImageStore::load`].
    pub(crate) fn spool(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("archive-").tempfile_in(self.inner.blobs.ingest_directory())
    }

    /// Loads every image of the archive and returns their names (the id of an image without a name). On an
    /// error the stored content of the archive is removed again.
    pub async fn load(&self, archive: File) -> Result<Vec<String>, ImageError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let hold = store.inner.blobs.holds().hold();
            let loaded = store.load_blocking(archive, &hold);
            let brought = hold.release();
            if loaded.is_err() {
                store.remove_unused(brought.iter().map(String::as_str), |_| true)?;
            }
            loaded
        })
        .await?
    }

    fn load_blocking(&self, archive: File, hold: &ContentHold) -> Result<Vec<String>, ImageError> {
        let Inner { blobs, limits, .. } = &*self.inner;
        let mut prepared = Vec::new();
        for ArchivedImage { target, names } in ingest(archive, blobs, limits, hold)? {
            let manifest = self.select_manifest(&target.digest)?;
            prepared.push((self.prepare(&target.digest, &manifest, hold)?, target.digest, names));
        }
        let mut known = Vec::new();
        for ((id, entry), digest, names) in prepared {
            let mut full: Vec<String> = names.iter().map(Reference::to_string).collect();
            known.extend(if full.is_empty() { vec![id.clone()] } else { full.clone() });
            full.extend(names.iter().map(|n| format!("{}@{digest}", n.name())));
            self.insert(id, entry, full)?;
        }
        Ok(known)
    }

    /// Returns the digest of the manifest for this machine, given the digest of a manifest or an index.
    fn select_manifest(&self, digest: &str) -> Result<String, ImageError> {
        let bytes = self.inner.blobs.read(digest, self.inner.limits.document_bytes)?;
        match parse_document(&bytes)? {
            ManifestOrIndex::Manifest(_) => Ok(digest.to_owned()),
            ManifestOrIndex::Index(index) => {
                let here = |digest: &str| self.inner.blobs.has(digest, 0).unwrap_or(false);
                let fits = |m: &&super::document::Descriptor| {
                    m.platform.as_ref().is_none_or(|p| p.matches()) && here(&m.digest)
                };
                let chosen = index.manifests.iter().find(fits);
                Ok(chosen
                    .ok_or_else(|| ImageError::Invalid(format!("no match for platform in index {digest}")))?
                    .digest
                    .clone())
            }
        }
    }

    /// Checks and unpacks an image whose blobs are stored. Blocks.
    fn prepare(
        &self,
        target: &str,
        manifest_digest: &str,
        hold: &ContentHold,
    ) -> Result<(String, Entry), ImageError> {
        let Inner { blobs, layers, limits, .. } = &*self.inner;
        let bytes = blobs.read(manifest_digest, limits.document_bytes)?;
        let ManifestOrIndex::Manifest(manifest) = parse_document(&bytes)? else {
            return Err(ImageError::Invalid("index within an index".into()));
        };
        let config = self.check(&manifest)?;
        let sources: Vec<LayerSource> = manifest
            .layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .map(|(layer, diff)| LayerSource { blob: layer.digest.clone(), diff_id: diff.clone() })
            .collect();
        let unpacked = layers.ensure(blobs, &sources, limits, hold)?;
        let mut used =
            BTreeSet::from([target.to_owned(), manifest_digest.to_owned(), manifest.config.digest.clone()]);
        used.extend(manifest.layers.iter().map(|l| l.digest.clone()));
        let size = manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size;
        Ok((manifest.config.digest, Entry { config, blobs: used, layers: unpacked, size }))
    }

    fn check(&self, manifest: &ImageManifest) -> Result<ImageConfig, ImageError> {
        let Inner { blobs, limits, .. } = &*self.inner;
        if manifest.layers.len() > limits.layers {
            return Err(ImageError::TooLarge(format!("image has more than {} layers", limits.layers)));
        }
        for descriptor in manifest.layers.iter().chain([&manifest.config]) {
            if !blobs.has(&descriptor.digest, 0)? {
                return Err(ImageError::Invalid(format!("content {} is missing", descriptor.digest)));
            }
            if !blobs.has(&descriptor.digest, descriptor.size)? {
                return Err(ImageError::Invalid(format!(
                    "content {} is not of the size its manifest says",
                    descriptor.digest
                )));
            }
        }
        let config: ImageConfig =
            parse(&blobs.read(&manifest.config.digest, limits.document_bytes)?, "image configuration")?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid("mismatched image rootfs and manifest layers".into()));
        }
        Ok(config)
    }

    fn insert(&self, id: String, entry: Entry, names: Vec<String>) -> Result<(), ImageError> {
        self.change(|table| {
            table.images.insert(id.clone(), entry);
            table.names.extend(names.into_iter().map(|name| (name, id.clone())));
        })
    }

    /// Changes the table on disk, then in memory.
    fn change(&self, change: impl FnOnce(&mut Table)) -> Result<(), ImageError> {
        let mut table = self.inner.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = table.clone();
        change(&mut next);
        files::replace_json(&self.inner.root.join(TABLE), &next)?;
        *table = next;
        Ok(())
    }

    fn table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.inner.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pulls an image and returns it once all of it is stored and unpacked.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: RegistryCredentials,
        progress: Option<mpsc::Sender<PullProgress>>,
    ) -> Result<Image, ImageError> {
        let id = self.pull_content(reference, credentials, progress).await?;
        self.find(&id).ok_or_else(|| ImageError::NotFound(reference.to_string()))
    }

    async fn pull_content(
        &self,
        reference: &Reference,
        credentials: RegistryCredentials,
        progress: Option<mpsc::Sender<PullProgress>>,
    ) -> Result<String, ImageError> {
        let Inner { blobs, limits, registries, .. } = &*self.inner;
        let hold = Arc::new(blobs.holds().hold());
        let puller =
            Puller::new(reference, credentials, registries, (blobs, &hold), limits, progress).await?;
        let (target, manifest) = puller.run().await?;
        let (store, digest, held) = (self.clone(), target.clone(), hold.clone());
        let (id, entry) =
            tokio::task::spawn_blocking(move || store.prepare(&digest, &manifest, &held)).await??;
        let names = vec![reference.to_string(), format!("{}@{target}", reference.name())];
        self.insert(id.clone(), entry, names)?;
        Ok(id)
    }

    /// Returns all images, ordered by id.
    pub fn list(&self) -> Vec<Image> {
        self.table(|table| table.images.iter().map(|(id, entry)| image(table, id, entry)).collect())
    }

    /// Returns the image with that id (with or without `sha256:`) or name; `None` if there is none.
    pub fn find(&self, text: &str) -> Option<Image> {
        self.table(|table| {
            let full = format!("sha256:{}", text.strip_prefix("sha256:").unwrap_or(text));
            let by_name =
                || text.parse::<Reference>().ok().and_then(|r| table.names.get(&r.to_string()).cloned());
            let id = if table.images.contains_key(&full) { full } else { by_name()? };
            table.images.get(&id).map(|entry| image(table, &id, entry))
        })
    }

    /// Removes the image with that id or name and all its names, then the content that only it needed.
    /// `in_use` returns the layers that containers use; it is called after the image has left the table.
    /// Succeeds if there is no such image.
    pub async fn remove(
        &self,
        text: &str,
        in_use: impl FnOnce() -> BTreeSet<String>,
    ) -> Result<(), ImageError> {
        let Some(image) = self.find(text) else { return Ok(()) };
        let mut removed = None;
        self.change(|table| {
            removed = table.images.remove(&image.id);
            table.names.retain(|_, id| *id != image.id);
        })?;
        let (store, in_use) = (self.clone(), in_use());
        tokio::task::spawn_blocking(move || {
            let needed = removed.iter().flat_map(|entry| entry.blobs.iter().chain(&entry.layers));
            let free = |name: &str| !in_use.contains(name);
            store.remove_unused(needed.map(String::as_str), free)?;
            let stale = store.stale()?;
            store.remove_unused(stale.iter().map(String::as_str), free)
        })
        .await?
    }

    /// Removes the named blobs (by digest) and layers that no image needs, no work holds and
    /// `free` permits to remove.
    fn remove_unused<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        free: impl Fn(&str) -> bool,
    ) -> Result<(), ImageError> {
        let Inner { blobs, layers, .. } = &*self.inner;
        for name in names.filter(|name| free(name)) {
            let unused = || self.table(|table| !table.needs(name));
            match name.starts_with("sha256:") {
                true => blobs.remove(name, unused)?,
                false => layers.remove(name, blobs.holds(), unused)?,
            }
        }
        Ok(())
    }

    /// Returns the blobs and layers that have been stored for longer than [`STALE`].
    fn stale(&self) -> Result<Vec<String>, ImageError> {
        let Inner { blobs, layers, .. } = &*self.inner;
        let old = |at: Option<SystemTime>| at.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > STALE);
        let mut names = blobs.list()?;
        names.retain(|name| old(blobs.stored_at(name)));
        names.extend(layers.list()?.into_iter().filter(|name| old(layers.unpacked_at(name))));
        Ok(names)
    }

    /// Returns the disk space taken, computed from the table and the layers' records.
    pub fn usage(&self) -> io::Result<ImageDiskUsage> {
        let layers = self.inner.layers.usage()?;
        let mut bytes = layers.bytes;
        for digest in self.inner.blobs.list()? {
            let path = self.inner.blobs.path(&digest).map_err(io::Error::other)?;
            bytes += std::fs::metadata(path).map_or(0, |m| m.len());
        }
        Ok(ImageDiskUsage { bytes, inodes: layers.entries })
    }
}

fn image(table: &Table, id: &str, entry: &Entry) -> Image {
    let names = table.names.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone());
    let (digests, references) = names.partition(|name| name.contains('@'));
    Image {
        id: id.to_owned(),
        references,
        digests,
        size: entry.size,
        config: entry.config.clone(),
        layers: entry.layers.clone(),
    }
}

#[cfg(test)]
mod tests;
