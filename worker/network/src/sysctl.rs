//! Kernel settings of the process's network namespace. Called by `pod` and `overlay`.

use std::{io, path::PathBuf};

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {name}={value}: {source}")]
pub struct Error {
    name: String,
    value: String,
    source: io::Error,
}

/// Sets a setting such as `net/ipv4/ip_forward` (with slashes, because interface names may contain
/// dots). Does not write a setting that already has the value, so that a read-only `/proc/sys`
/// with prepared values works.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| Error { name: name.into(), value: value.into(), source })
}
