//! The parts of SPDY/3.1 that port-forward needs: streams opened by the client, headers compressed with the
//! protocol's dictionary, data in both directions, pings. There is no flow control, because the clients
//! (moby/spdystream) have none.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// Maximum length of a frame, and of a decompressed header block, in bytes.
const FRAME_LIMIT: usize = 16 << 20;
const HEADER_LIMIT: usize = 64 << 10;

/// RST_STREAM status code: the sender cancels the stream.
pub(super) const CANCEL: u32 = 5;

/// A decoded frame from the client.
#[derive(Debug)]
pub(super) enum SpdyEvent {
    /// The client opened a stream with these headers.
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
        ended: bool,
    },
    Reset {
        stream: u32,
    },
    Ping([u8; 4]),
    GoAway,
}

/// Reads and decodes the client's frames.
pub(super) struct SpdyReader<R> {
    inner: R,
    headers: Decompress,
}

impl<R: AsyncRead + Unpin> SpdyReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, headers: Decompress::new(true) }
    }

    /// Reads the next event; `None` at the end of the connection. Not cancel-safe: a dropped
    /// call loses part of a frame.
    pub async fn next(&mut self) -> io::Result<Option<SpdyEvent>> {
        loop {
            let mut head = [0; 8];
            match self.inner.read_exact(&mut head).await {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(e),
            }
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if length > FRAME_LIMIT {
                return Err(malformed("frame too long"));
            }
            let mut body = vec![0; length];
            self.inner.read_exact(&mut body).await?;
            let ended = flags & FLAG_FIN != 0;
            if head[0] & 0x80 == 0 {
                let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                return Ok(Some(SpdyEvent::Data { stream, bytes: body, ended }));
            }
            if u16::from_be_bytes([head[0] & 0x7f, head[1]]) != VERSION {
                return Err(malformed("not SPDY version 3"));
            }
            if let Some(event) = self.control(u16::from_be_bytes([head[2], head[3]]), &body)? {
                return Ok(Some(event));
            }
        }
    }

    fn control(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<SpdyEvent>> {
        let word = |at: usize| -> io::Result<[u8; 4]> {
            body.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(|| malformed("frame too short"))
        };
        Ok(match kind {
            SYN_STREAM => {
                let stream = u32::from_be_bytes(word(0)?) & 0x7fff_ffff;
                let block = body.get(10..).ok_or_else(|| malformed("frame too short"))?;
                Some(SpdyEvent::Open { stream, headers: parse_headers(&self.inflate(block)?)? })
            }
            RST_STREAM => Some(SpdyEvent::Reset { stream: u32::from_be_bytes(word(0)?) & 0x7fff_ffff }),
            PING => Some(SpdyEvent::Ping(word(0)?)),
            GOAWAY => Some(SpdyEvent::GoAway),
            // Settings and window updates are ignored. Every header block must be decompressed all the same,
            // because each depends on those before it.
            8 => {
                self.inflate(body.get(4..).unwrap_or_default())?;
                None
            }
            _ => None,
        })
    }

    fn inflate(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4096);
        loop {
            let before = self.headers.total_in();
            let outcome = self.headers.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let used = usize::try_from(self.headers.total_in() - before).unwrap_or(block.len());
            block = &block[used.min(block.len())..];
            match outcome {
                Ok(Status::Ok | Status::BufError) if block.is_empty() && out.len() < out.capacity() => {
                    return Ok(out);
                }
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(Status::Ok | Status::BufError)
                    if out.len() < HEADER_LIMIT && (used > 0 || out.len() == out.capacity()) =>
                {
                    out.reserve(4096);
                }
                Ok(_) => return Err(malformed("headers too long")),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.headers.set_dictionary(&dictionary()).map_err(io::Error::other)?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

/// Writes frames to the client.
pub(super) struct SpdyWriter<W> {
    inner: W,
    headers: Compress,
}

impl<W: AsyncWrite + Unpin> SpdyWriter<W> {
    pub fn new(inner: W) -> io::Result<Self> {
        let mut headers = Compress::new(Compression::default(), true);
        headers.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        Ok(Self { inner, headers })
    }

    /// Accepts a stream that the client opened (SYN_REPLY).
    pub async fn reply(&mut self, stream: u32) -> io::Result<()> {
        let mut block = Vec::with_capacity(256);
        // The header block contains a count of zero headers.
        self.headers
            .compress_vec(&0u32.to_be_bytes(), &mut block, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        let mut body = stream.to_be_bytes().to_vec();
        body.extend_from_slice(&block);
        self.control(SYN_REPLY, &body).await
    }

    /// Sends data on a stream; `ended` marks the last data.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], ended: bool) -> io::Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend_from_slice(&length(bytes.len(), if ended { FLAG_FIN } else { 0 })?);
        frame.extend_from_slice(bytes);
        self.inner.write_all(&frame).await?;
        self.inner.flush().await
    }

    /// Aborts a stream with a status code (RST_STREAM).
    pub async fn reset(&mut self, stream: u32, status: u32) -> io::Result<()> {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend_from_slice(&status.to_be_bytes());
        self.control(RST_STREAM, &body).await
    }

    /// Answers a ping.
    pub async fn pong(&mut self, id: [u8; 4]) -> io::Result<()> {
        self.control(PING, &id).await
    }

    async fn control(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        let mut frame = (0x8000 | VERSION).to_be_bytes().to_vec();
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&length(body.len(), 0)?);
        frame.extend_from_slice(body);
        self.inner.write_all(&frame).await?;
        self.inner.flush().await
    }
}

pub(super) fn length(length: usize, flags: u8) -> io::Result<[u8; 4]> {
    let length =
        u32::try_from(length).ok().filter(|l| *l < 1 << 24).ok_or_else(|| malformed("frame too long"))?;
    let [_, a, b, c] = length.to_be_bytes();
    Ok([flags, a, b, c])
}

fn malformed(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn parse_headers(block: &[u8]) -> io::Result<Vec<(String, String)>> {
    let mut rest = block;
    let number = |rest: &mut &[u8]| -> io::Result<usize> {
        let (word, after) = rest.split_at_checked(4).ok_or_else(|| malformed("headers too short"))?;
        *rest = after;
        Ok(u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize)
    };
    let count = number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let mut pair = [String::new(), String::new()];
        for text in &mut pair {
            let length = number(&mut rest)?;
            let (bytes, after) =
                rest.split_at_checked(length).ok_or_else(|| malformed("headers too short"))?;
            rest = after;
            *text = String::from_utf8_lossy(bytes).into_owned();
        }
        let [name, value] = pair;
        headers.push((name, value));
    }
    Ok(headers)
}

/// Builds the compression dictionary of the protocol (SPDY draft 3, section 2.6.10.1): words, each after its
/// length, then text of common headers.
pub(super) fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding \
        content-language content-length content-location content-md5 content-range content-type date etag expect \
        expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
        location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
        trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status";
    const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::with_capacity(1423);
    let mut word = |word: &str| {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    };
    WORDS.split_whitespace().for_each(&mut word);
    for text in ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"] {
        word(text);
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        // Compares length and Adler-32 checksum, which every compressed stream has in its first bytes.
        let dictionary = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn a_stream_is_opened_with_its_headers() {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).expect("dictionary");
        let mut wire = Vec::new();
        for port in ["80", "8080"] {
            let mut plain = 1u32.to_be_bytes().to_vec();
            for text in ["port", port] {
                plain.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(512);
            compress.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("compress");
            let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            body.extend_from_slice(&block);
            wire.extend_from_slice(&[0x80, 3, 0, 1]);
            wire.extend_from_slice(&length(body.len(), 0).expect("short"));
            wire.extend_from_slice(&body);
        }
        let mut reader = SpdyReader::new(wire.as_slice());
        for port in ["80", "8080"] {
            let event = reader.next().await.expect("read").expect("an event");
            let SpdyEvent::Open { stream: 1, headers } = event else { panic!("{event:?}") };
            assert_eq!(headers, [("port".to_owned(), port.to_owned())]);
        }
        assert!(reader.next().await.expect("read").is_none());
    }
}
