//! Protobuf's wire format over a byte slice: reads the fields of one message in order, borrowed, and skips
//! groups.

use prost::encoding::{self, DecodeContext, WireType};

/// Why bytes are not the expected message, with the texts of Kubernetes' generated code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The data (`data`) is empty, or nothing follows the magic bytes (`body`).
    #[error("empty {0}")]
    Empty(&'static str),
    /// The magic bytes are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The data ends inside a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A varint is longer than 64 bits.
    #[error("proto: integer overflow")]
    Overflow,
    /// The field number is zero or exceeds 29 bits.
    #[error("proto: illegal tag {tag} (wire type {wire})")]
    Tag {
        /// The field number.
        tag: u64,
        /// The wire type.
        wire: u64,
    },
    /// The wire type of a field does not match the field's type.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The wire type.
        wire: u8,
        /// The field's name.
        field: String,
    },
    /// The wire type is 6 or 7, or a group's start and end do not match.
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u64),
    /// Messages are nested too deeply.
    #[error("proto: exceeded max depth")]
    Depth,
    /// A value that its JSON form cannot express, such as a time in the year 300,000.
    #[error("{0}")]
    Value(String),
}

/// The value of a field in wire form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn wrong<T>(self, field: &str) -> Result<T, Error> {
        let wire = match self {
            Wire::Varint(_) => WireType::Varint,
            Wire::Fixed64(_) => WireType::SixtyFourBit,
            Wire::Bytes(_) => WireType::LengthDelimited,
            Wire::Fixed32(_) => WireType::ThirtyTwoBit,
        };
        // Go's field names begin with a capital letter.
        let mut letters = field.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        Err(Error::WireType { wire: wire as u8, field: first.into_iter().chain(letters).collect() })
    }

    pub(super) fn varint(self, field: &str) -> Result<u64, Error> {
        match self {
            Wire::Varint(n) => Ok(n),
            other => other.wrong(field),
        }
    }

    pub(super) fn bytes(self, field: &str) -> Result<&'a [u8], Error> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            other => other.wrong(field),
        }
    }

    /// Reads text. Like Go it does not check for UTF-8; invalid bytes become U+FFFD, as in Go's JSON.
    pub(super) fn text(self, field: &str) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(self.bytes(field)?).into_owned())
    }

    pub(super) fn float(self, field: &str) -> Result<f64, Error> {
        match self {
            Wire::Fixed64(bits) => Ok(f64::from_bits(bits)),
            Wire::Fixed32(bits) => Ok(f64::from(f32::from_bits(bits))),
            other => other.wrong(field),
        }
    }
}

/// Reads the fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Returns the next field; `None` at the end. Groups, which Kubernetes does not use, are skipped.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        while !self.rest.is_empty() {
            let key = self.varint()?;
            let (tag, wire) = (key >> 3, key & 7);
            let tag = u32::try_from(tag)
                .ok()
                .filter(|t| (encoding::MIN_TAG..=encoding::MAX_TAG).contains(t))
                .ok_or(Error::Tag { tag, wire })?;
            let value = match WireType::try_from(wire) {
                Ok(WireType::Varint) => Wire::Varint(self.varint()?),
                Ok(WireType::SixtyFourBit) => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
                Ok(WireType::ThirtyTwoBit) => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
                Ok(WireType::LengthDelimited) => {
                    let length = usize::try_from(self.varint()?).map_err(|_| Error::Truncated)?;
                    Wire::Bytes(self.take(length)?)
                }
                Ok(WireType::StartGroup) => {
                    encoding::skip_field(WireType::StartGroup, tag, &mut self.rest, DecodeContext::default())
                        .map_err(|_| Error::IllegalWireType(wire))?;
                    continue;
                }
                Ok(WireType::EndGroup) | Err(_) => return Err(Error::IllegalWireType(wire)),
            };
            return Ok(Some((tag, value)));
        }
        Ok(None)
    }

    /// Returns the next varint of a packed list; `None` at the end.
    pub(super) fn packed(&mut self) -> Result<Option<u64>, Error> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        /// Maximum bytes of a 64-bit varint.
        const LONGEST: usize = 10;
        let unread = self.rest.len();
        encoding::decode_varint(&mut self.rest)
            .map_err(|_| if unread < LONGEST { Error::Truncated } else { Error::Overflow })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}
