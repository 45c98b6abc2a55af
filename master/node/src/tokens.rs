//! Checks join tokens against the Secrets they are stored in. Called by `join.rs`;
//! `ephor token` writes the Secrets.

use std::time::SystemTime;

use consensus::Consensus;
use proto_wire::token::JoinToken;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::pki;

/// Key in a token's Secret that allows a master to join.
pub const USAGE_MASTER: &str = "usage-ephor-join-master";
/// Key in a token's Secret that allows a worker to join.
pub const USAGE_WORKER: &str = "usage-ephor-join-worker";

/// Key in a token's Secret that names the only worker that may join with it, even when a Node
/// of that name exists.
pub const NODE_NAME: &str = "ephor-node-name";

/// Rights that a valid token gives its holder besides joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenGrants {
    /// The only node name the holder may use; `None` for any name that is free.
    pub node: Option<String>,
}

/// Returns the SHA-256 of the DER of the first certificate in a PEM.
pub fn ca_hash(ca_pem: &str) -> Result<[u8; 32], pki::Error> {
    let certificates = pki::files::certificates(ca_pem)?;
    let first = certificates.first().ok_or(pki::Error::Pem("CA certificate"))?;
    Ok(Sha256::digest(first).into())
}

/// Why a token is refused. The caller is told only this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such token, or its secret is wrong.
    #[error("the token is not known here")]
    Unknown,
    /// The token has expired.
    #[error("the token has expired: create a new one with `ephor token create`")]
    Expired,
    /// A worker's token was used to join as a master, or the other way round.
    #[error("the token is for another role: see `ephor token create --role`")]
    Role,
}

#[derive(Deserialize)]
struct StoredToken {
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

impl StoredToken {
    fn text(&self, key: &str) -> Option<String> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.data.get(key)?).ok()?;
        String::from_utf8(bytes).ok()
    }
}

/// Checks a token against the local replica; the caller has passed a read barrier.
pub fn check(
    consensus: &Consensus,
    token: &JoinToken,
    usage: &str,
    now: SystemTime,
) -> Result<TokenGrants, Refused> {
    let key = format!("/registry/core/secrets/kube-system/bootstrap-token-{}", token.id);
    let object = consensus.store().get(&key).ok_or(Refused::Unknown)?;
    let stored: StoredToken = serde_json::from_slice(&object.value).map_err(|_| Refused::Unknown)?;
    check_stored(&stored, token, usage, now)
}

fn check_stored(
    stored: &StoredToken,
    token: &JoinToken,
    usage: &str,
    now: SystemTime,
) -> Result<TokenGrants, Refused> {
    let secret = stored.text("token-secret").ok_or(Refused::Unknown)?;
    // Comparing hashes of equal length keeps the time it takes independent of the secret.
    if Sha256::digest(secret.as_bytes()) != Sha256::digest(token.secret.as_bytes()) {
        return Err(Refused::Unknown);
    }
    if let Some(expiration) = stored.text("expiration") {
        let end: jiff::Timestamp = expiration.parse().map_err(|_| Refused::Expired)?;
        if SystemTime::from(end) <= now {
            return Err(Refused::Expired);
        }
    }
    if stored.text(usage).as_deref() != Some("true") {
        return Err(Refused::Role);
    }
    Ok(TokenGrants { node: stored.text(NODE_NAME) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine;

    use super::*;

    fn stored(entries: &[(&str, &str)]) -> StoredToken {
        let encode = |v: &str| base64::engine::general_purpose::STANDARD.encode(v);
        StoredToken { data: entries.iter().map(|(k, v)| ((*k).to_owned(), encode(v))).collect() }
    }

    fn token() -> JoinToken {
        JoinToken { ca_hash: [0; 32], id: "abcdef".into(), secret: "0123456789abcdef".into() }
    }

    #[test]
    fn a_token_opens_only_its_own_role_and_only_in_its_time() {
        let stored = stored(&[
            ("token-secret", "0123456789abcdef"),
            ("expiration", "2030-01-01T00:00:00Z"),
            (USAGE_WORKER, "true"),
        ]);
        let before = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        assert_eq!(check_stored(&stored, &token(), USAGE_WORKER, before), Ok(TokenGrants { node: None }));
        assert_eq!(check_stored(&stored, &token(), USAGE_MASTER, before), Err(Refused::Role));
        assert_eq!(check_stored(&stored, &token(), USAGE_WORKER, after), Err(Refused::Expired));
    }

    #[test]
    fn another_secret_is_unknown() {
        let stored = stored(&[("token-secret", "fedcba9876543210"), (USAGE_WORKER, "true")]);
        assert_eq!(check_stored(&stored, &token(), USAGE_WORKER, SystemTime::now()), Err(Refused::Unknown));
    }
}
