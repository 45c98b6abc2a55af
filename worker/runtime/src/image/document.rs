//! The JSON documents of an image (OCI image-spec 1.1, and Docker's manifests, which differ only in media
//! types), and their bounded parsing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ImageError;

/// Reference to a blob: digest, size and media type.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// Operating system and architecture that a manifest in an index is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub architecture: String,
    pub os: String,
}

impl Platform {
    /// Returns whether this machine runs programs for the platform.
    pub fn matches(&self) -> bool {
        self.os == "linux" && self.architecture == machine_architecture()
    }
}

/// Returns this machine's architecture by Go's name, which image documents use.
fn machine_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// List of an image's manifests, one per platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageIndex {
    pub manifests: Vec<Descriptor>,
}

/// Manifest of one image: its configuration and layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageManifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// A parsed manifest or index.
pub(crate) enum ManifestOrIndex {
    Index(ImageIndex),
    Manifest(ImageManifest),
}

/// Parses a manifest or an index.
pub(crate) fn parse_document(bytes: &[u8]) -> Result<ManifestOrIndex, ImageError> {
    let value: serde_json::Value = parse(bytes, "manifest")?;
    if value.get("manifests").is_some() {
        return Ok(ManifestOrIndex::Index(from_value(value, "index")?));
    }
    let manifest: ImageManifest = from_value(value, "manifest")?;
    if manifest.schema_version != 2 {
        return Err(ImageError::Invalid(format!(
            "unsupported manifest schema version {}",
            manifest.schema_version
        )));
    }
    Ok(ManifestOrIndex::Manifest(manifest))
}

/// An image's configuration, reduced to what a container needs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<ImageProcess>,
    pub rootfs: RootFs,
}

/// The process settings in an image's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageProcess {
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    #[serde(default)]
    pub working_dir: Option<String>,
    #[serde(default)]
    pub stop_signal: Option<String>,
    #[serde(default)]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// Digests of the uncompressed layers, lowest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// Parses `bytes` as JSON; `what` names the document in an error.
pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::Invalid(format!("invalid {what}: {e}")))
}

fn from_value<T: serde::de::DeserializeOwned>(value: serde_json::Value, what: &str) -> Result<T, ImageError> {
    serde_json::from_value(value).map_err(|e| ImageError::Invalid(format!("invalid {what}: {e}")))
}
