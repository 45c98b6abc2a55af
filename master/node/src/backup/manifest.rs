//! Metadata of a bundle: [`Head`], at its beginning, says which state it holds;
//! [`BundleManifest`], at its end, how much it holds and its checksum.

use serde::{Deserialize, Serialize};

use super::{BundleEntry, Error};

/// Version of the bundle format that is written; earlier versions can be read.
pub const FORMAT: u32 = 1;
pub(super) const HEAD: &str = "head.json";
pub(super) const SETTINGS: &str = "settings.json";
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const SNAPSHOT: &str = "snapshot/";

/// Describes the state that a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Version of the bundle format.
    pub format: u32,
    /// Id of the cluster the backup was taken from.
    pub cluster_id: String,
    /// The revision of the objects.
    pub revision: u64,
    /// Index of the last log entry applied.
    pub applied_index: u64,
    /// Term of that log entry.
    pub term: u64,
    /// Number of objects.
    pub objects: u64,
    /// When the backup was taken, RFC 3339, by the clock of the master.
    pub time: String,
    /// Name of the master the backup was taken from.
    pub master: String,
    /// Version of Ephor on that master.
    pub version: String,
    /// Why the backup may lack acknowledged writes: there was no quorum. `None` when it lacks none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

/// Summary of a complete bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleManifest {
    /// Describes the state.
    #[serde(flatten)]
    pub head: Head,
    /// Number of entries before the manifest.
    pub entries: u64,
    /// Total size of the entries' contents in bytes.
    pub bytes: u64,
    /// BLAKE3 over the length and bytes of each name and content, in hexadecimal.
    pub blake3: String,
}

/// Running sum over the entries of a bundle.
#[derive(Default)]
pub(super) struct Sum {
    hasher: blake3::Hasher,
    entries: u64,
    bytes: u64,
}

// === impl Head ===

impl Head {
    /// Decodes a head; refuses formats of later versions before it looks at any other field.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let not_json = |error: serde_json::Error| Error::Damaged(format!("{HEAD}: {error}"));
        let version: Version = serde_json::from_slice(bytes).map_err(not_json)?;
        if version.format == 0 || version.format > FORMAT {
            return Err(Error::Version(version.format));
        }
        serde_json::from_slice(bytes).map_err(not_json)
    }

    /// Returns the file name of the bundle; names sort by cluster, then by time.
    pub fn file_name(&self, kind: &str) -> String {
        let time: String = self.time.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        format!("{}{time}-r{}.ephor", prefix(kind, &self.cluster_id), self.revision)
    }
}

/// Returns the common prefix of the names of a cluster's bundles of one kind.
pub(super) fn prefix(kind: &str, cluster_id: &str) -> String {
    format!("{kind}-{cluster_id}-")
}

// === impl Sum ===

impl Sum {
    pub(super) fn add(&mut self, name: &str, data: &[u8]) {
        for part in [name.as_bytes(), data] {
            self.hasher.update(&(part.len() as u64).to_le_bytes());
            self.hasher.update(part);
        }
        self.entries += 1;
        self.bytes += data.len() as u64;
    }

    pub(super) fn manifest(&self, head: Head) -> BundleManifest {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        BundleManifest { head, entries: self.entries, bytes: self.bytes, blake3 }
    }
}

/// Encodes a value as a JSON entry.
pub(super) fn json_entry<T: Serialize>(name: &str, value: &T) -> Result<BundleEntry, Error> {
    let data = serde_json::to_vec_pretty(value).map_err(|error| Error::Source(format!("{name}: {error}")))?;
    Ok(BundleEntry { name: name.to_owned(), data: data.into() })
}
