//! The keys of ServiceAccount tokens: one signs, the next one is published before it signs, and each older one
//! verifies until the last token that it signed has ended. `key_rotation.rs` changes them.
//!
//! All masters agree on them through one entry of the replicated store, which no API path leads to. It holds no key:
//! each key is derived from a random seed in the entry and a secret that masters alone have. So whoever reads the
//! store, a snapshot or the log learns nothing, no key has to be handed over, and a master that was away while keys
//! changed has all of them as soon as it has the entry. The first key of a cluster is in a file of every master.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hkdf::Hkdf;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use p256::pkcs8::EncodePrivateKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;
use storage::{Object, Revision};
use zeroize::Zeroizing;

/// Key of the store's entry that holds the [`Record`].
pub const STORE_KEY: &str = "/ephor/service-account-keys";
/// Tokens that live up to this many seconds are not noted in the record: every key verifies for longer than this after
/// it has signed its last token. Pods' tokens live an hour.
pub const SHORT_TOKEN_SECONDS: i64 = 2 * 3600;
/// Seconds that a key is kept beyond the end of its last token, since the clocks of masters differ.
const MARGIN_SECONDS: i64 = 600;
/// Longest time between the publication of a key and its first signature. Clients may keep the published keys for half
/// of it.
const MAX_LEAD: Duration = Duration::from_secs(2 * 3600);
/// Shortest such time; see [`RECENT`].
const MIN_LEAD: Duration = Duration::from_secs(1);
/// A replica that was current this recently has every key that may have signed a token, because keys are published at
/// least twice as long before they sign.
pub const RECENT: Duration = Duration::from_millis(500);

/// Why a signing key is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is neither an RSA nor an ECDSA P-256 key in PEM.
    #[error("the ServiceAccount key is neither an RSA nor a P-256 private key in PKCS#8 PEM")]
    Key,
    /// The public half cannot be derived.
    #[error("the public half of the ServiceAccount key: {0}")]
    PublicKey(#[from] jsonwebtoken::errors::Error),
    /// The store's entry is not a record of keys.
    #[error("the record of the ServiceAccount keys: {0}")]
    Record(#[from] serde_json::Error),
    /// The record does not name exactly one key that signs.
    #[error("the record of the ServiceAccount keys has {0} keys that sign")]
    Signing(usize),
}

/// What a master knows about the keys from its data directory.
#[derive(Clone)]
pub struct ServiceAccountKeys {
    /// The first key of the cluster: RSA or P-256, PKCS#8 PEM.
    pub first_key_pem: String,
    /// When the first key was made.
    pub first_key_since: SystemTime,
    /// Time at which all tokens are assumed to have ended that the first key signed before there was a record.
    pub first_key_tokens_until: SystemTime,
    /// Secret of the masters that all other keys are derived from.
    pub secret: Zeroizing<[u8; 32]>,
    /// Lifetime of a key: the next one is published after two thirds of it.
    pub lifetime: Duration,
}

/// One key of the record. Times are seconds since 1970 by the clock of the leader that wrote them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What the key is derived from; empty for the first key of the cluster.
    seed: String,
    /// When the key began to sign; `None` while it is only published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signs_from: Option<i64>,
    /// When the next key began to sign; `None` until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signs_until: Option<i64>,
    /// No token that lives longer than [`SHORT_TOKEN_SECONDS`] and is signed by this key ends later.
    #[serde(default)]
    tokens_until: i64,
}

impl Entry {
    /// Returns whether every token that this key signed has ended.
    fn is_over(&self, now: i64) -> bool {
        let last =
            self.signs_until.map(|until| until.saturating_add(SHORT_TOKEN_SECONDS).max(self.tokens_until));
        last.is_some_and(|last| last.saturating_add(MARGIN_SECONDS) <= now)
    }

    fn signs(&self) -> bool {
        self.signs_from.is_some() && self.signs_until.is_none()
    }
}

/// The keys that masters agree on, oldest first; exactly one signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    keys: Vec<Entry>,
}

impl Record {
    /// Returns the record of a cluster that has only its first key.
    pub fn first(since: i64, tokens_until: i64) -> Self {
        let (signs_from, signs_until) = (Some(since), None);
        Self { keys: vec![Entry { seed: String::new(), signs_from, signs_until, tokens_until }] }
    }

    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let record: Self = serde_json::from_slice(bytes)?;
        match record.keys.iter().filter(|entry| entry.signs()).count() {
            1 => Ok(record),
            count => Err(Error::Signing(count)),
        }
    }

    /// Returns the seed of the key that is published and does not sign yet.
    pub fn next_seed(&self) -> Option<&str> {
        self.keys.iter().find(|entry| entry.signs_from.is_none()).map(|entry| entry.seed.as_str())
    }

    /// Notes that the key that signs may sign tokens up to `tokens_until`.
    #[must_use]
    pub fn with_tokens_until(&self, tokens_until: i64) -> Self {
        let mut record = self.clone();
        for entry in record.keys.iter_mut().filter(|entry| entry.signs()) {
            entry.tokens_until = entry.tokens_until.max(tokens_until);
        }
        record
    }

    /// Returns the record after the next step that is due at `now`; `None` where none is. `published` says whether the
    /// next key has been published for long enough, `seed` makes the seed of a new one.
    pub fn step(
        &self,
        now: i64,
        lifetime: Duration,
        published: bool,
        seed: impl FnOnce() -> String,
    ) -> Option<Self> {
        let mut record = self.clone();
        record.keys.retain(|entry| !entry.is_over(now));
        if record.next_seed().is_some() {
            if published {
                record
                    .keys
                    .iter_mut()
                    .filter(|entry| entry.signs())
                    .for_each(|old| old.signs_until = Some(now));
                let next = record.keys.iter_mut().filter(|entry| entry.signs_from.is_none());
                next.for_each(|next| next.signs_from = Some(now));
            }
        } else {
            let since = self.keys.iter().find(|entry| entry.signs()).and_then(|entry| entry.signs_from)?;
            let two_thirds = i64::try_from(lifetime.as_secs() / 3 * 2).unwrap_or(i64::MAX);
            if now >= since.saturating_add(two_thirds) {
                let (signs_from, signs_until) = (None, None);
                record.keys.push(Entry { seed: seed(), signs_from, signs_until, tokens_until: 0 });
            }
        }
        (record != *self).then_some(record)
    }
}

/// A key pair that signs and verifies tokens.
pub struct SigningKey {
    seed: String,
    /// `ES256` or `RS256`.
    pub algorithm: Algorithm,
    /// The private half.
    pub encoding: EncodingKey,
    /// The public half.
    pub decoding: DecodingKey,
    /// The `kid` of its tokens: the thumbprint of the public half (RFC 7638).
    pub id: String,
    jwk: Jwk,
}

impl SigningKey {
    fn from_pem(pem: &str) -> Result<Self, Error> {
        let candidates = [
            (Algorithm::ES256, EncodingKey::from_ec_pem(pem.as_bytes())),
            (Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes())),
        ];
        for (algorithm, key) in candidates {
            let Ok(encoding) = key else { continue };
            return Self::new(String::new(), algorithm, encoding);
        }
        Err(Error::Key)
    }

    /// Derives the key of a seed: HKDF (RFC 5869) with the seed as salt gives the private scalar.
    fn derive(secret: &[u8; 32], seed: &str) -> Result<Self, Error> {
        let derivation = Hkdf::<Sha256>::new(Some(seed.as_bytes()), secret);
        // Of 2^32 candidates one is not below the order of the curve.
        for attempt in 0..=u8::MAX {
            let mut scalar = Zeroizing::new([0; 32]);
            let info = [b"ephor service account key ".as_slice(), &[attempt]];
            derivation.expand_multi_info(&info, &mut scalar[..]).map_err(|_| Error::Key)?;
            let Ok(key) = p256::SecretKey::from_slice(&scalar[..]) else { continue };
            let der = key.to_pkcs8_der().map_err(|_| Error::Key)?;
            return Self::new(seed.to_owned(), Algorithm::ES256, EncodingKey::from_ec_der(der.as_bytes()));
        }
        Err(Error::Key)
    }

    fn new(seed: String, algorithm: Algorithm, encoding: EncodingKey) -> Result<Self, Error> {
        let mut jwk = Jwk::from_encoding_key(&encoding, algorithm)?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256);
        jwk.common.key_id = Some(id.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let decoding = DecodingKey::from_jwk(&jwk)?;
        Ok(Self { seed, algorithm, encoding, decoding, id, jwk })
    }
}

/// The keys at one revision of the record.
pub struct KeySet {
    /// Revision of the record; `None` where there is none.
    pub revision: Option<Revision>,
    /// The record.
    pub record: Record,
    /// All keys in the order of the record; all of them verify.
    pub keys: Vec<Arc<SigningKey>>,
}

impl KeySet {
    /// Returns the key that signs, with the time up to which it may sign tokens of any length.
    pub fn signing(&self) -> Option<(&Arc<SigningKey>, i64)> {
        let mut pairs = self.keys.iter().zip(&self.record.keys);
        pairs.find(|(_, entry)| entry.signs()).map(|(key, entry)| (key, entry.tokens_until))
    }

    /// Returns the public halves as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(|key| &key.jwk).collect::<Vec<_>>()})
    }
}

/// Finds the keys that belong to a record.
pub struct SigningKeys {
    config: ServiceAccountKeys,
    without_record: Record,
    first: Arc<SigningKey>,
    latest: Mutex<Latest>,
}

/// The keys found last; most lookups are at the same revision.
struct Latest {
    set: Arc<KeySet>,
    /// Revision of the record that could not be read last.
    unreadable: Option<Revision>,
}

impl SigningKeys {
    /// Creates the keys of a master.
    ///
    /// # Errors
    ///
    /// [`Error`] where the first key cannot be used.
    pub fn new(config: ServiceAccountKeys) -> Result<Self, Error> {
        let first = Arc::new(SigningKey::from_pem(&config.first_key_pem)?);
        let without_record =
            Record::first(unix_seconds(config.first_key_since), unix_seconds(config.first_key_tokens_until));
        let (record, keys) = (without_record.clone(), vec![Arc::clone(&first)]);
        let set = Arc::new(KeySet { revision: None, record, keys });
        let latest = Mutex::new(Latest { set, unreadable: None });
        Ok(Self { config, without_record, first, latest })
    }

    /// Returns the keys that the store's entry names.
    pub fn of(&self, entry: Option<&Object>) -> Arc<KeySet> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = entry.map(|entry| entry.mod_revision);
        if latest.set.revision != revision && (revision.is_none() || latest.unreadable != revision) {
            match self.make(entry, &latest.set.keys) {
                Ok(set) => latest.set = Arc::new(set),
                // The keys known so far go on; a record that a later version wrote ends nothing.
                Err(error) => {
                    tracing::error!(%error, "the ServiceAccount keys could not be read");
                    latest.unreadable = revision;
                }
            }
        }
        Arc::clone(&latest.set)
    }

    fn make(&self, entry: Option<&Object>, known: &[Arc<SigningKey>]) -> Result<KeySet, Error> {
        let record = entry.map_or_else(|| Ok(self.without_record.clone()), |it| Record::parse(&it.value))?;
        let key = |entry: &Entry| match known.iter().find(|key| key.seed == entry.seed) {
            Some(key) => Ok(Arc::clone(key)),
            None if entry.seed.is_empty() => Ok(Arc::clone(&self.first)),
            None => SigningKey::derive(&self.config.secret, &entry.seed).map(Arc::new),
        };
        let keys = record.keys.iter().map(key).collect::<Result<_, Error>>()?;
        Ok(KeySet { revision: entry.map(|entry| entry.mod_revision), record, keys })
    }

    /// Returns the lifetime of a key.
    pub fn lifetime(&self) -> Duration {
        self.config.lifetime
    }

    /// Returns how long a key is published before it signs.
    pub fn lead(&self) -> Duration {
        (self.config.lifetime / 12).clamp(MIN_LEAD, MAX_LEAD)
    }

    /// Returns when the lifetime of the key ends that signs; another one signs by then.
    pub fn end(&self, set: &KeySet) -> SystemTime {
        let since = set.record.keys.iter().find(|entry| entry.signs()).and_then(|entry| entry.signs_from);
        let since = Duration::from_secs(u64::try_from(since.unwrap_or_default()).unwrap_or_default());
        SystemTime::UNIX_EPOCH + since + self.config.lifetime
    }
}

fn unix_seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "signing_keys_tests.rs"]
mod tests;
