//! Kernel settings of the network namespace the process runs in. Called by `pod`, `overlay`.

use std::{io, path::PathBuf};

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {name}={value}: {source}")]
pub struct Error {
    name: String,
    value: String,
    source: io::Error,
}

/// Sets `net/ipv4/ip_forward` and the like (slashes, because interface names may hold dots). A setting
/// that already has the value is left alone, so that a read-only `/proc/sys` prepared by hand works.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| Error { name: name.into(), value: value.into(), source })
}
