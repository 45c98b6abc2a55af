//! The table of images: which name stands for which image, and what each image is made of.
//!
//! Loads and pulls add content while holding the collector off (a read lock); removal takes
//! the write lock and collects what no image, and no container, refers to any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, mpsc};

use super::archive::{Listed, ingest};
use super::content::Blobs;
use super::document::{Document, ImageConfig, Manifest, parse, parse_document};
use super::layers::{LayerSource, Layers};
use super::pull::{Credentials, Progress, Puller};
use super::{ImageError, Reference};
use crate::config::{ImageLimits, Registries};
use crate::files;

const TABLE: &str = "images.json";

/// An image that is here, whole and unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:HEX` of the configuration.
    pub id: String,
    /// Full names with a tag.
    pub references: Vec<String>,
    /// Full names with a digest.
    pub digests: Vec<String>,
    /// Bytes of its blobs.
    pub size: u64,
    pub(crate) config: ImageConfig,
    /// Names of the unpacked layers, lowest first.
    pub(crate) layers: Vec<String>,
}

impl Image {
    /// What a container's status calls the image: a name by digest, or the id.
    pub(crate) fn reference(&self) -> String {
        self.digests.first().unwrap_or(&self.id).clone()
    }
}

/// Space taken by images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes of blobs and unpacked layers.
    pub bytes: u64,
    /// Files of unpacked layers.
    pub inodes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Table {
    /// Full name (by tag or digest) to image id.
    names: BTreeMap<String, String>,
    /// Image id to what it is made of.
    images: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    config: ImageConfig,
    blobs: BTreeSet<String>,
    layers: Vec<String>,
    size: u64,
}

/// Images of one runtime. Cheap to clone.
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
    /// Shared by what adds content, exclusive to what collects it.
    content: RwLock<()>,
}

impl ImageStore {
    /// Opens the store below `root`, making it if it is new.
    pub fn open(root: &Path, limits: ImageLimits, registries: Registries) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let blobs = Blobs::open(root)?;
        let layers = Layers::open(root)?;
        let table = files::read_json(&root.join(TABLE))?.unwrap_or_default();
        let table = Mutex::new(table);
        let content = RwLock::new(());
        let inner = Inner { root: root.to_owned(), blobs, layers, limits, registries, table, content };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory that [`Image`]'s layer names are relative to.
    pub(crate) fn layers_directory(&self) -> &Path {
        self.inner.layers.directory()
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The most bytes a load may bring.
    pub(crate) fn archive_limit(&self) -> u64 {
        self.inner.limits.archive_bytes
    }

    /// A file for the bytes of an archive on their way to [`ImageStore::load`].
    pub(crate) fn spool(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("archive-").tempfile_in(self.inner.blobs.ingest_directory())
    }

    /// Loads every image of the archive and returns their names (ids of those without one).
    /// On an error nothing of the archive is kept.
    pub async fn load(&self, archive: File) -> Result<Vec<String>, ImageError> {
        let store = self.clone();
        let guard = self.inner.content.read().await;
        let loaded = tokio::task::spawn_blocking(move || store.load_blocking(archive)).await?;
        drop(guard);
        if loaded.is_err() {
            self.collect(&BTreeSet::new(), false).await?;
        }
        loaded
    }

    fn load_blocking(&self, archive: File) -> Result<Vec<String>, ImageError> {
        let Inner { blobs, limits, .. } = &*self.inner;
        let mut prepared = Vec::new();
        for Listed { target, names } in ingest(archive, blobs, limits)? {
            let manifest = self.select_manifest(&target.digest)?;
            prepared.push((self.prepare(&target.digest, &manifest)?, target.digest, names));
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

    /// The digest of the manifest for this machine behind a manifest's or index's digest.
    fn select_manifest(&self, digest: &str) -> Result<String, ImageError> {
        let bytes = self.inner.blobs.read(digest, self.inner.limits.document_bytes)?;
        match parse_document(&bytes)? {
            Document::Manifest(_) => Ok(digest.to_owned()),
            Document::Index(index) => {
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

    /// Checks and unpacks an image whose blobs are here. Blocks.
    fn prepare(&self, target: &str, manifest_digest: &str) -> Result<(String, Entry), ImageError> {
        let Inner { blobs, layers, limits, .. } = &*self.inner;
        let bytes = blobs.read(manifest_digest, limits.document_bytes)?;
        let Document::Manifest(manifest) = parse_document(&bytes)? else {
            return Err(ImageError::Invalid("index within an index".into()));
        };
        let config = self.check(&manifest)?;
        let sources: Vec<LayerSource> = manifest
            .layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .map(|(layer, diff)| LayerSource { blob: layer.digest.clone(), diff_id: diff.clone() })
            .collect();
        let unpacked = layers.ensure(blobs, &sources, limits)?;
        let mut used =
            BTreeSet::from([target.to_owned(), manifest_digest.to_owned(), manifest.config.digest.clone()]);
        used.extend(manifest.layers.iter().map(|l| l.digest.clone()));
        let size = manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size;
        Ok((manifest.config.digest, Entry { config, blobs: used, layers: unpacked, size }))
    }

    fn check(&self, manifest: &Manifest) -> Result<ImageConfig, ImageError> {
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

    /// Changes the table on disk, then here.
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

    /// Pulls an image, returning it when all of it is here and unpacked.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, ImageError> {
        let result = self.pull_content(reference, credentials, progress).await;
        match result {
            Ok(id) => self.find(&id).ok_or_else(|| ImageError::NotFound(reference.to_string())),
            Err(error) => {
                self.collect(&BTreeSet::new(), false).await?;
                Err(error)
            }
        }
    }

    async fn pull_content(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<String, ImageError> {
        let Inner { blobs, limits, registries, content, .. } = &*self.inner;
        let _guard = content.read().await;
        let puller = Puller::new(reference, credentials, registries, blobs, limits, progress).await?;
        let (target, manifest) = puller.run().await?;
        let (store, digest) = (self.clone(), target.clone());
        let (id, entry) = tokio::task::spawn_blocking(move || store.prepare(&digest, &manifest)).await??;
        let names = vec![reference.to_string(), format!("{}@{target}", reference.name())];
        self.insert(id.clone(), entry, names)?;
        Ok(id)
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        self.table(|table| table.images.iter().map(|(id, entry)| image(table, id, entry)).collect())
    }

    /// The image of that id (with or without `sha256:`) or name.
    pub fn find(&self, text: &str) -> Option<Image> {
        self.table(|table| {
            let full = format!("sha256:{}", text.strip_prefix("sha256:").unwrap_or(text));
            let by_name =
                || text.parse::<Reference>().ok().and_then(|r| table.names.get(&r.to_string()).cloned());
            let id = if table.images.contains_key(&full) { full } else { by_name()? };
            table.images.get(&id).map(|entry| image(table, &id, entry))
        })
    }

    /// Removes the image of that id or name with all its names, then what only it needed.
    /// `in_use` are layers that containers stand on. Removing what is not here succeeds.
    pub async fn remove(&self, text: &str, in_use: &BTreeSet<String>) -> Result<(), ImageError> {
        let Some(image) = self.find(text) else { return Ok(()) };
        self.change(|table| {
            table.images.remove(&image.id);
            table.names.retain(|_, id| *id != image.id);
        })?;
        self.collect(in_use, true).await
    }

    /// Removes blobs and, if `layers`, unpacked layers that nothing refers to. Without
    /// knowledge of what containers stand on, layers are left alone.
    async fn collect(&self, in_use: &BTreeSet<String>, layers: bool) -> Result<(), ImageError> {
        let _guard = self.inner.content.write().await;
        let (blobs, mut used) = self.table(|table| {
            let blobs: BTreeSet<String> =
                table.images.values().flat_map(|e| e.blobs.iter().cloned()).collect();
            let used: BTreeSet<String> =
                table.images.values().flat_map(|e| e.layers.iter().cloned()).collect();
            (blobs, used)
        });
        used.extend(in_use.iter().cloned());
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            for digest in store.inner.blobs.list()?.iter().filter(|d| !blobs.contains(*d)) {
                store.inner.blobs.remove(digest)?;
            }
            if layers {
                for name in store.inner.layers.list()?.iter().filter(|n| !used.contains(*n)) {
                    store.inner.layers.remove(name)?;
                }
            }
            Ok(())
        })
        .await?
    }

    /// Space taken, from the table and the records of layers.
    pub fn usage(&self) -> io::Result<Usage> {
        let layers = self.inner.layers.usage()?;
        let mut bytes = layers.bytes;
        for digest in self.inner.blobs.list()? {
            let path = self.inner.blobs.path(&digest).map_err(io::Error::other)?;
            bytes += std::fs::metadata(path).map_or(0, |m| m.len());
        }
        Ok(Usage { bytes, inodes: layers.entries })
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
