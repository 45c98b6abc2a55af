//! The only place that calls bincode, always with a limit: without one, nine bytes that claim a huge length
//! abort the process. `consensus` uses it for the wire, this crate for records.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Maximum bytes that one record may take or claim.
pub const LIMIT_BYTES: usize = 64 * 1024 * 1024;

fn config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT_BYTES>,
> {
    bincode::config::standard().with_limit::<LIMIT_BYTES>()
}

/// Encodes a record; `what` names it in errors.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, config())
        .map_err(|error| Error::Damaged { what, reason: error.to_string() })
}

/// Decodes a record that takes all of `bytes`; `what` names it in errors.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| Error::Damaged { what, reason: error.to_string() })?;
    if used != bytes.len() {
        return Err(Error::Damaged { what, reason: format!("{} bytes follow it", bytes.len() - used) });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_bytes_that_claim_a_huge_length_are_refused() {
        let bytes = [253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(decode::<Vec<u8>>("test", &bytes).is_err());
        assert!(decode::<String>("test", &bytes).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode("test", &7_u64).unwrap();
        assert_eq!(decode::<u64>("test", &bytes).unwrap(), 7);
        bytes.push(0);
        assert!(decode::<u64>("test", &bytes).is_err());
    }
}
