//! Reads image archives: OCI image layouts and the output of `docker save`, plain or compressed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use serde::Deserialize;
use tar::{Archive, Entry, EntryType};

use super::budget::{Budget, Gauge};
use super::content::Blobs;
use super::document::{Descriptor, ImageIndex, ImageManifest, parse};
use super::hold::ContentHold;
use super::unpack::plain;
use super::{ImageError, Reference};
use crate::config::ImageLimits;

/// An image in an archive: its manifest or index, and its names.
pub(crate) struct ArchivedImage {
    pub target: Descriptor,
    pub names: Vec<Reference>,
}

/// Stores every blob of the archive under its verified digest and returns the images that the archive lists.
/// Blocks. Blobs stored before an error are collected later.
pub(crate) fn ingest(
    file: File,
    blobs: &Blobs,
    limits: &ImageLimits,
    hold: &ContentHold,
) -> Result<Vec<ArchivedImage>, ImageError> {
    let mut contents = Contents::default();
    let budget = Budget::new(blobs.ingest_directory(), limits.archive_bytes, limits.image_entries)?;
    let store = Store { blobs, limits, hold, budget };
    let gauge = Gauge::default();
    let mut archive = Archive::new(gauge.watch(plain(file)?.take(limits.archive_bytes)));
    let mut entries = archive.entries()?;
    loop {
        gauge.before_headers();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        gauge.before_content();
        store.budget.take_entry()?;
        contents.entry(&mut entry, &store)?;
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
    }
    let images = if let Some(index) = &contents.index {
        from_layout(parse(index, "index.json")?)?
    } else if let Some(manifest) = &contents.manifest {
        from_docker(parse(manifest, "manifest.json")?, &contents, &store)?
    } else {
        return Err(ImageError::Invalid(
            "the archive is neither an OCI image layout nor made by docker save: no index.json, no manifest.json".into(),
        ));
    };
    if images.is_empty() {
        return Err(ImageError::Invalid("the archive lists no image".into()));
    }
    Ok(images)
}

fn broken(error: io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::FileTooLarge => error.into(),
        _ => ImageError::Invalid(format!("the archive is corrupt: {error}")),
    }
}

/// Destination and limits for the content of the archive.
struct Store<'a> {
    blobs: &'a Blobs,
    limits: &'a ImageLimits,
    hold: &'a ContentHold,
    budget: Budget,
}

/// Paths, links and documents collected while reading the archive.
#[derive(Default)]
struct Contents {
    index: Option<Vec<u8>>,
    manifest: Option<Vec<u8>>,
    /// Digest and size of the blob at each path in the archive.
    digests: BTreeMap<String, (String, u64)>,
    /// Target path of each link in the archive.
    links: BTreeMap<String, String>,
}

impl Contents {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, store: &Store<'_>) -> Result<(), ImageError> {
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::Symlink | EntryType::Link => {
                if let Some(target) = entry.link_name_bytes() {
                    let target = String::from_utf8_lossy(&target).trim_start_matches("../").to_owned();
                    self.links.insert(name, target);
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
        match name.as_str() {
            "index.json" => self.index = Some(document(entry, store.limits)?),
            "manifest.json" => self.manifest = Some(document(entry, store.limits)?),
            "oci-layout" | "repositories" => {}
            _ => self.blob(name, entry, store)?,
        }
        Ok(())
    }

    fn blob<R: Read>(
        &mut self,
        name: String,
        entry: &mut Entry<'_, R>,
        store: &Store<'_>,
    ) -> Result<(), ImageError> {
        let (size, largest) = (entry.size(), store.limits.layer_bytes);
        if size > largest {
            return Err(ImageError::TooLarge(format!("{name} is larger than {largest} bytes")));
        }
        let mut writer = store.blobs.writer()?;
        let copied = store.budget.copy(entry, &mut writer).map_err(broken)?;
        if copied != size {
            return Err(ImageError::Invalid(format!("the archive is cut off in {name}")));
        }
        let digest = match name.strip_prefix("blobs/sha256/") {
            Some(hex) => {
                let digest = format!("sha256:{hex}");
                store.blobs.path(&digest)?;
                writer.commit_as(&digest, 0, store.hold)?;
                digest
            }
            None => writer.commit(store.hold)?,
        };
        self.digests.insert(name, (digest, size));
        Ok(())
    }

    /// Returns the digest and size of the blob at a path of the archive.
    fn find(&self, path: &str) -> Result<(String, u64), ImageError> {
        let direct = self.digests.get(path);
        let linked = || self.links.get(path).and_then(|target| self.digests.get(target));
        let found = direct.or_else(linked);
        found.cloned().ok_or_else(|| ImageError::Invalid(format!("the archive lacks {path}")))
    }
}

fn document<R: Read>(entry: &mut Entry<'_, R>, limits: &ImageLimits) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    entry.take(limits.document_bytes + 1).read_to_end(&mut bytes).map_err(broken)?;
    match bytes.len() as u64 > limits.document_bytes {
        true => Err(ImageError::TooLarge(format!(
            "a document of the archive is larger than {} bytes",
            limits.document_bytes
        ))),
        false => Ok(bytes),
    }
}

/// Returns the images of `index.json`. Names are full names in annotations, as containerd, skopeo and
/// buildkit write them; a bare tag is ignored, because it does not name the repository.
fn from_layout(index: ImageIndex) -> Result<Vec<ArchivedImage>, ImageError> {
    let mut images = Vec::new();
    for target in index.manifests {
        if target.platform.as_ref().is_some_and(|p| !p.matches()) {
            continue;
        }
        let mut names: Vec<Reference> = Vec::new();
        for key in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
            let Some(text) = target.annotations.get(key) else { continue };
            let full = key.starts_with("io.containerd") || text.contains(['/', ':']);
            if full {
                let name = text.parse()?;
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        images.push(ArchivedImage { target, names });
    }
    Ok(images)
}

/// An entry of docker save's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Returns the images of docker save's `manifest.json`. It has no OCI manifests, so that they are created
/// here.
fn from_docker(
    images: Vec<DockerImage>,
    contents: &Contents,
    store: &Store<'_>,
) -> Result<Vec<ArchivedImage>, ImageError> {
    let describe = |media_type: &str, (digest, size): (String, u64)| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
    };
    let mut listed = Vec::new();
    for image in images {
        let config = contents.find(&image.config)?;
        if let Some(hex) = image.config.strip_suffix(".json").filter(|hex| hex.len() == 64)
            && config.0 != format!("sha256:{hex}")
        {
            return Err(ImageError::DigestMismatch { expected: format!("sha256:{hex}"), actual: config.0 });
        }
        let layers = image.layers.iter().map(|l| Ok(describe(DOCKER_LAYER, contents.find(l)?)));
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: DOCKER_MANIFEST.into(),
            config: describe(DOCKER_CONFIG, config),
            layers: layers.collect::<Result<_, ImageError>>()?,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(io::Error::from)?;
        let target = describe(DOCKER_MANIFEST, (store.blobs.put(&bytes, store.hold)?, bytes.len() as u64));
        let tags = image.repo_tags.unwrap_or_default();
        let names = tags.iter().map(|t| Ok(t.parse()?)).collect::<Result<_, ImageError>>()?;
        listed.push(ArchivedImage { target, names });
    }
    Ok(listed)
}
