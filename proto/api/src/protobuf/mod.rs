//! Kubernetes' protobuf encoding (`application/vnd.kubernetes.protobuf`), driven by the field numbers of
//! the schema table. A message is decoded to the same document as its JSON form, so that type checks,
//! defaults and validation are shared. The API server's `decode.rs` calls it for request bodies.
//!
//! A body is four magic bytes and a `runtime.Unknown`: apiVersion, kind and the message. Because bodies
//! come from clients, nothing here panics, recursion is bounded, and memory and time are proportional to a
//! body's length.

mod decode;
mod leaf;
mod wire;

pub use decode::message;
pub use wire::Error;

use wire::Reader;

/// The media type of a body.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The magic bytes that begin every body.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// The parts of a body (`runtime.Unknown`): its declared type, and the message, which is not decoded yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope<'a> {
    /// The apiVersion, such as `apps/v1`; empty if the client left it out.
    pub api_version: String,
    /// The kind, such as `Deployment`; empty if the client left it out.
    pub kind: String,
    /// The bytes of the message, to be decoded by [`message`].
    pub raw: &'a [u8],
}

/// Splits a body into its parts.
///
/// # Errors
///
/// Fails if magic bytes or message are missing, or the wrapper is not protobuf.
pub fn envelope(body: &[u8]) -> Result<Envelope<'_>, Error> {
    if body.is_empty() {
        return Err(Error::Empty("data"));
    }
    let data = body.strip_prefix(&MAGIC).ok_or(Error::Magic)?;
    if data.is_empty() {
        return Err(Error::Empty("body"));
    }
    let mut found = Envelope::default();
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => {
                let mut meta = Reader::new(wire.bytes("TypeMeta")?);
                while let Some((tag, wire)) = meta.next()? {
                    match tag {
                        1 => found.api_version = wire.text("APIVersion")?,
                        2 => found.kind = wire.text("Kind")?,
                        _ => {}
                    }
                }
            }
            2 => found.raw = wire.bytes("Raw")?,
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
