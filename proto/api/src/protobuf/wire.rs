//! Protobuf's wire format over a slice: the fields of one message in order, borrowed, groups skipped.

use prost::encoding::{self, DecodeContext, WireType};

/// Why bytes are not the message they should be; the texts are those of Kubernetes' generated code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing (`data`), or nothing after the magic bytes (`body`).
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
    /// Field number zero, or one beyond 29 bits.
    #[error("proto: illegal tag {tag} (wire type {wire})")]
    Tag {
        /// The field number.
        tag: u64,
        /// The wire type.
        wire: u64,
    },
    /// A field of another wire type than its type has.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The wire type.
        wire: u8,
        /// The field.
        field: String,
    },
    /// Wire types 6 and 7, or groups that do not match.
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u64),
    /// Messages nested too deeply.
    #[error("proto: exceeded max depth")]
    Depth,
    /// A value that its JSON form cannot hold, such as a time in the year 300,000.
    #[error("{0}")]
    Value(String),
}

/// The value of a field as it is on the wire.
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
        // Go names its own field, which begins with a capital.
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

    /// Text; Go does not check it here, and writes bytes that are no UTF-8 as U+FFFD in JSON.
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

/// The fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// The next field, `None` at the end. Groups, which Kubernetes does not use, are skipped.
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

    /// Bare varints to the end, as packed lists have them.
    pub(super) fn packed(&mut self) -> Result<Option<u64>, Error> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        /// The length of the longest 64-bit varint.
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
