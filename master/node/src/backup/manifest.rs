//! What a bundle says of itself: at its beginning, of which state it is
//! ([`Head`]); at its end, how much it holds and the sum of it ([`Manifest`]).

use serde::{Deserialize, Serialize};

use super::{Entry, Error};

/// The version of the layout that is written; older ones are read.
pub const FORMAT: u32 = 1;
pub(super) const HEAD: &str = "head.json";
pub(super) const SETTINGS: &str = "settings.json";
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const SNAPSHOT: &str = "snapshot/";

/// Of which state a bundle is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// The version of the layout.
    pub format: u32,
    /// The cluster it was taken from.
    pub cluster_id: String,
    /// The revision of the objects.
    pub revision: u64,
    /// The log index applied last.
    pub applied_index: u64,
    /// The term of that entry.
    pub term: u64,
    /// How many objects.
    pub objects: u64,
    /// When it was taken, RFC 3339, by the clock of the master.
    pub time: String,
    /// The master it was taken from.
    pub master: String,
    /// Its version.
    pub version: String,
    /// Why nobody knows whether later writes were acknowledged: there was no quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

/// What a whole bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Of which state.
    #[serde(flatten)]
    pub head: Head,
    /// How many entries there are before the manifest.
    pub entries: u64,
    /// The bytes of their contents.
    pub bytes: u64,
    /// blake3 over the length and bytes of each name and content, in hexadecimal.
    pub blake3: String,
}

/// Adds entries up.
#[derive(Default)]
pub(super) struct Sum {
    hasher: blake3::Hasher,
    entries: u64,
    bytes: u64,
}

// === impl Head ===

impl Head {
    /// Reads a head; what later versions wrote is refused before anything else
    /// in it is looked at.
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

    /// The name of a bundle: sorts by cluster, then by time.
    pub fn file_name(&self, kind: &str) -> String {
        let time: String = self.time.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        format!("{}{time}-r{}.ephor", prefix(kind, &self.cluster_id), self.revision)
    }
}

/// What the names of one cluster's bundles of one kind begin with.
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

    pub(super) fn manifest(&self, head: Head) -> Manifest {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        Manifest { head, entries: self.entries, bytes: self.bytes, blake3 }
    }
}

/// An entry of JSON.
pub(super) fn json_entry<T: Serialize>(name: &str, value: &T) -> Result<Entry, Error> {
    let data = serde_json::to_vec_pretty(value).map_err(|error| Error::Source(format!("{name}: {error}")))?;
    Ok(Entry { name: name.to_owned(), data: data.into() })
}
