//! Kubernetes' protobuf encoding (`application/vnd.kubernetes.protobuf`), driven by the field numbers of the
//! schema table. A message becomes the document its JSON twin would have been read to, so that type checks,
//! defaults and validation are the same for both. The API server's `decode.rs` calls it for request bodies.
//!
//! A body is four magic bytes and a `runtime.Unknown`: apiVersion, kind and the message. Bodies come from
//! clients: nothing here panics, recursion is bounded, and memory and time grow with the length of the body.

mod decode;
mod leaf;
mod wire;

pub use decode::message;
pub use wire::Error;

use wire::Reader;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body starts with.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// A body taken apart (`runtime.Unknown`): what it says it is, and the message, still to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope<'a> {
    /// `apps/v1`; empty where the client left it out.
    pub api_version: String,
    /// `Deployment`; empty where the client left it out.
    pub kind: String,
    /// The message, for [`message`].
    pub raw: &'a [u8],
}

/// Takes a body apart.
///
/// # Errors
///
/// Magic bytes or message are missing, or the wrapper is no protobuf.
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
