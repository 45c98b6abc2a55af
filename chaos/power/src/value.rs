//! Keys and values: each version of each key has exactly one possible value, from which the version can be
//! read.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Number of keys that are written.
pub const KEYS: u64 = 400;
const HEAD: usize = 16;

/// Returns the name of a key in the store.
pub fn key(number: u64) -> String {
    format!("/registry/power/{number:06}")
}

/// Returns the number of a key from its name.
pub fn number(key: &str) -> Result<u64> {
    Ok(key.rsplit('/').next().context("no key of ours")?.parse()?)
}

/// Returns whether this version is a deletion.
pub fn is_deletion(version: u64) -> bool {
    version % 9 == 8
}

/// Returns the value of a version: mostly small, sometimes of many pieces.
pub fn of(key: u64, version: u64) -> Bytes {
    let mut random = StdRng::seed_from_u64(key << 40 ^ version);
    let size = match random.random_range(0..200) {
        0 => 300_000,
        1..20 => random.random_range(4_000..20_000),
        _ => random.random_range(HEAD..2_000),
    };
    let mut bytes = vec![0; size.max(HEAD)];
    random.fill_bytes(&mut bytes);
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..HEAD].copy_from_slice(&version.to_le_bytes());
    bytes.into()
}

/// Returns the version that a value of a key belongs to; fails if the value is not valid.
pub fn version(key: u64, value: &[u8]) -> Result<u64> {
    let version = value.get(8..HEAD).context("the value is too short")?;
    let version = u64::from_le_bytes(version.try_into()?);
    ensure!(value == of(key, version), "the value of key {key} is damaged");
    Ok(version)
}
