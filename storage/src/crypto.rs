//! Encryption at the disk boundary: XChaCha20-Poly1305 with keys derived from the cluster's data key, one
//! for each purpose. Log, objects and staged snapshots go through a [`Sealer`]; fingerprints that replicas
//! compare do not.

use std::sync::Arc;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use proto_env::Random;
use zeroize::Zeroizing;

use crate::{Error, Result};

const NONCE_BYTES: usize = 24;

/// The cluster's data key: 32 random bytes made at `--init`.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

/// Encrypts and decrypts records of one purpose.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    random: Arc<dyn Random>,
}

// === impl DataKey ===

impl DataKey {
    /// Makes the key with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Generates a new key.
    pub fn generate(random: &dyn Random) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        random.fill(&mut bytes[..]);
        Self(bytes)
    }

    /// Returns the key's bytes, for the file under `DATA/pki` and for a joining master.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(..)")
    }
}

// === impl Sealer ===

impl Sealer {
    /// Makes a sealer for the purpose that `context` names, with a key of its own.
    pub fn new(key: &DataKey, context: &str, random: Arc<dyn Random>) -> Self {
        let context = format!("ephor 2025 {context} seal");
        let derived = Zeroizing::new(blake3::derive_key(&context, key.as_bytes()));
        Self { cipher: XChaCha20Poly1305::new((&*derived).into()), random }
    }

    /// Encrypts `plain`; decryption needs the same `bound`.
    pub fn seal(&self, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        self.random.fill(&mut nonce);
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: bound })
            .map_err(|_| Error::TooLarge { what: "a sealed record" })?;
        let mut out = Vec::with_capacity(NONCE_BYTES + sealed.len());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Decrypts the output of [`Sealer::seal`] with the same purpose and `bound`; `what` names the record
    /// in errors.
    pub fn open(&self, what: &'static str, bound: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let damaged = |reason: &str| Error::Damaged { what, reason: reason.to_owned() };
        let (nonce, sealed) =
            sealed.split_at_checked(NONCE_BYTES).ok_or_else(|| damaged("shorter than a nonce"))?;
        self.cipher
            .decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: bound })
            .map_err(|_| damaged("it does not open with the cluster's data key"))
    }
}

#[cfg(test)]
mod tests {
    use proto_env::SystemRandom;

    use super::*;

    #[test]
    fn a_record_opens_only_with_its_key_its_use_and_its_place() {
        let key = DataKey::generate(&SystemRandom);
        let sealer = Sealer::new(&key, "log", Arc::new(SystemRandom));
        let sealed = sealer.seal(b"7", b"secret").unwrap();
        assert_eq!(sealer.open("test", b"7", &sealed).unwrap(), b"secret");
        assert!(sealer.open("test", b"8", &sealed).is_err());
        assert!(sealer.open("test", b"7", &sealed[..10]).is_err());
        let other_use = Sealer::new(&key, "objects", Arc::new(SystemRandom));
        assert!(other_use.open("test", b"7", &sealed).is_err());
        let other_key = Sealer::new(&DataKey::generate(&SystemRandom), "log", Arc::new(SystemRandom));
        assert!(other_key.open("test", b"7", &sealed).is_err());
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
    }
}
