//! Images: a content store by digest, a table of names, and layers unpacked for overlayfs.
//!
//! [`ImageStore`] is used by the CRI image service, by `ephor.image.v1.Images` and, for the
//! lower directories of a root file system, by container creation. Nothing is stored whose
//! digest was not computed here, and an image gets its name only once all of it is there.

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
pub use pull::{Credentials, Progress};
pub use reference::{InvalidReference, Reference};
pub use store::{Image, ImageStore, Usage};

/// Why an image could not be loaded, pulled or found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A blob's digest is not the one it was announced with.
    #[error("digest mismatch: expected {expected}, content is {actual}")]
    DigestMismatch {
        /// What a manifest, an index or a file name promised.
        expected: String,
        /// What was computed.
        actual: String,
    },
    /// A blob's size is not the one it was announced with.
    #[error("size mismatch of {digest}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// The blob.
        digest: String,
        /// Promised size in bytes.
        expected: u64,
        /// Size found in bytes.
        actual: u64,
    },
    /// The archive or a document in it cannot be an image for this machine.
    #[error("{0}")]
    Invalid(String),
    /// A bound of the configuration was passed.
    #[error("{0}")]
    TooLarge(String),
    /// There is no such image here.
    #[error("image \"{0}\" not found")]
    NotFound(String),
    /// The name is no image name.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The registry refused or could not be reached.
    #[error("failed to pull and unpack image \"{reference}\": {message}")]
    Pull {
        /// The image asked for.
        reference: String,
        /// The registry client's error with its causes.
        message: String,
    },
    /// Reading or writing the image store failed.
    #[error("image store: {0}")]
    Io(std::io::Error),
    /// A worker thread of the runtime died.
    #[error("image task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A bound that was passed while bytes were written is the image's fault, not the disk's.
impl From<std::io::Error> for ImageError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::FileTooLarge => Self::TooLarge(crate::files::chain(&error)),
            _ => Self::Io(error),
        }
    }
}
