//! Continue tokens of paged lists, in Kubernetes' shape: base64url of `{"v":"meta.k8s.io/v1","rv":N,"start":"..."}`.
//! `registry/list.rs` makes and reads them.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use proto_api::status::Status;
use serde::{Deserialize, Serialize};

/// Unpadded base64url as Go decodes it: surplus bits of the last letter are ignored.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// A decoded continue token: where the next page starts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ContinueToken {
    v: String,
    /// Revision of the first page; negative where the remaining pages may be of a newer revision
    /// ("inconsistent").
    pub rv: i64,
    /// Last key already delivered, relative to the list's prefix, followed by a NUL.
    start: String,
}

impl ContinueToken {
    /// Returns a token for the objects after `key` under `prefix`.
    pub fn new(revision: i64, prefix: &str, key: &str) -> Self {
        let start = key.strip_prefix(prefix).unwrap_or(key);
        Self { v: "meta.k8s.io/v1".to_owned(), rv: revision, start: format!("{start}\0") }
    }

    /// Returns the text for `metadata.continue`.
    pub fn encode(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Decodes a token.
    ///
    /// # Errors
    ///
    /// 400 for a token this server cannot have made.
    pub fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: &str| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = BASE64.decode(text.trim_end_matches('=')).map_err(|e| bad(&e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().copied().map_or('?', char::from);
            bad(&format!("invalid character '{}' looking for beginning of value", go_char(first)))
        })?;
        if token.v != "meta.k8s.io/v1" {
            return Err(bad(&format!("server does not recognize this encoded version {:?}", token.v)));
        }
        if token.start.is_empty() || token.start.split('/').any(|part| part == ".." || part == ".") {
            return Err(bad("encoded start key is not valid"));
        }
        if token.rv == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        Ok(token)
    }

    /// Returns the last key already delivered.
    pub fn start_after(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.start.trim_end_matches('\0'))
    }
}

/// Formats a character as Go's JSON decoder quotes it in errors.
fn go_char(c: char) -> String {
    if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was_made() {
        let token = ContinueToken::new(12, "/registry/core/pods/", "/registry/core/pods/a/b");
        let again = ContinueToken::decode(&token.encode()).expect("decodes");
        assert_eq!(again, token);
        assert_eq!(again.start_after("/registry/core/pods/"), "/registry/core/pods/a/b");
    }

    #[test]
    fn garbage_is_a_bad_request_in_kubernetes_words() {
        let error = ContinueToken::decode("garbage").expect_err("400");
        assert_eq!(error.code, 400);
        assert_eq!(
            error.message,
            "invalid continue token: continue key is not valid: invalid character '\\u0081' looking for beginning of value"
        );
    }
}
