//! The cluster's keys and certificates: created once at `--init`, given to joining
//! masters, stored in `DATA/pki` (0600) on every master and never in the object
//! store. `authority.rs` signs, `files.rs` stores; `build.rs` and `join.rs` call.

pub mod authority;
pub mod files;

pub use authority::{Authority, DEFAULT_LIFETIME, Issued, Subject, Usage, Validity};
pub use files::{ClusterKeys, KeyFiles};

/// Why keys or certificates cannot be created or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key or certificate is malformed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The key files do not match their checksums.
    #[error("{0}: its files do not match SHA256SUMS: remove the data directory and join again")]
    Damaged(std::path::PathBuf),
    /// The PEM does not parse.
    #[error("{0} is not PEM of the expected kind")]
    Pem(&'static str),
    /// TLS refuses the keys or certificates.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}
