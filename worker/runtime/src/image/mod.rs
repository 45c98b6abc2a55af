//! Images: a content store by digest, a table of names, and layers unpacked for overlayfs.
//!
//! [`ImageStore`] is used by the CRI image service, by `ephor.image.v1.Images` and, for the lower directories
//! of a root file system, by container creation. Content is stored only after its digest was verified, and an
//! image gets its name only once all of its content is stored.

mod archive;
mod budget;
mod content;
mod document;
mod hold;
mod layers;
mod pull;
mod reference;
mod store;
mod unpack;

pub(crate) use document::ImageConfig;
pub use pull::{PullProgress, RegistryCredentials};
pub use reference::{InvalidReference, Reference};
pub use store::{Image, ImageDiskUsage, ImageStore};

/// Why an image could not be loaded, pulled or found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A blob's digest differs from the announced one.
    #[error("digest mismatch: expected {expected}, content is {actual}")]
    DigestMismatch {
        /// Digest in the manifest, the index or the file name.
        expected: String,
        /// Digest of the content.
        actual: String,
    },
    /// A blob's size differs from the announced one.
    #[error("size mismatch of {digest}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// Digest of the blob.
        digest: String,
        /// Announced size in bytes.
        expected: u64,
        /// Actual size in bytes.
        actual: u64,
    },
    /// The archive or a document in it is invalid, or the image is not for this machine.
    #[error("{0}")]
    Invalid(String),
    /// The image exceeds a limit of the configuration.
    #[error("{0}")]
    TooLarge(String),
    /// The image is not in the store.
    #[error("image \"{0}\" not found")]
    NotFound(String),
    /// The name is not a valid image name.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The registry refused the request or could not be reached.
    #[error("failed to pull and unpack image \"{reference}\": {message}")]
    Pull {
        /// Name of the requested image.
        reference: String,
        /// The registry client's error with its causes.
        message: String,
    },
    /// Reading or writing the image store failed.
    #[error("image store: {0}")]
    Io(std::io::Error),
    /// A blocking task of the runtime panicked or was cancelled.
    #[error("image task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Reports an exceeded limit while writing as an error of the image, not of the disk.
impl From<std::io::Error> for ImageError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::FileTooLarge => Self::TooLarge(crate::files::chain(&error)),
            _ => Self::Io(error),
        }
    }
}
