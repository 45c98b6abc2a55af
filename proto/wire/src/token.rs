//! Join tokens: `ephor1.<sha256 of the CA>.<id6>.<secret16>`. The hash pins the cluster's CA, so that a
//! joiner authenticates the master before it sends the secret; the rest is a Kubernetes bootstrap token.

use std::fmt;
use std::str::FromStr;

const VERSION: &str = "ephor1";

/// A parsed join token. `Debug` hides the secret; `Display` prints the whole token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA certificate (DER).
    pub ca_hash: [u8; 32],
    /// The token's id: six characters, public.
    pub id: String,
    /// The token's secret: sixteen characters.
    pub secret: String,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text does not have four parts, or has another version.
    #[error("a join token looks like ephor1.<sha256 of the CA>.<id>.<secret>")]
    Shape,
    /// The CA hash is not 64 hexadecimal digits.
    #[error("the CA hash of the token is not a sha256")]
    Hash,
    /// Id or secret is not of its fixed length, or has characters other than lower-case letters and digits.
    #[error("the token's id has 6 and its secret 16 characters of a-z and 0-9")]
    Part,
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [version, hash, id, secret] = parts[..] else { return Err(Error::Shape) };
        if version != VERSION {
            return Err(Error::Shape);
        }
        let ca_hash = hash_from_hex(hash).ok_or(Error::Hash)?;
        if !is_part(id, 6) || !is_part(secret, 16) {
            return Err(Error::Part);
        }
        Ok(Self { ca_hash, id: id.into(), secret: secret.into() })
    }
}

fn is_part(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn hash_from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.")?;
        for byte in self.ca_hash {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ".{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_it_was_printed() {
        let token = JoinToken { ca_hash: [0xab; 32], id: "abc123".into(), secret: "0123456789abcdef".into() };
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        let token = JoinToken { ca_hash: [0; 32], id: "abc123".into(), secret: "0123456789abcdef".into() };
        assert!(!format!("{token:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn malformed_tokens_say_what_is_wrong() {
        assert_eq!("abc123.0123456789abcdef".parse::<JoinToken>(), Err(Error::Shape));
        assert_eq!("ephor1.zz.abc123.0123456789abcdef".parse::<JoinToken>(), Err(Error::Hash));
        let hash = "0".repeat(64);
        assert_eq!(format!("ephor1.{hash}.abc.0123456789abcdef").parse::<JoinToken>(), Err(Error::Part));
    }
}
