//! Rewrites links in proxied answers: an absolute path in a `Location` header or an HTML attribute is moved
//! below the proxy's own path, as stock's proxy transport does. Pages are rewritten as a stream, in time
//! linear in their length; of an unfinished attribute value at most as many bytes as the proxy's path has are
//! held back.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

/// HTML attributes that hold URLs.
const ATTRIBUTES: [&[u8]; 9] =
    [b"href", b"src", b"action", b"background", b"cite", b"codebase", b"data", b"formaction", b"poster"];
/// Elements whose content is not HTML.
const RAW_ELEMENTS: [&[u8]; 2] = [b"script", b"style"];
/// Maximum length of an attribute or element name that is compared; longer names never match.
const NAME_MAX_BYTES: usize = 16;

/// Returns a link as a client of the proxy must see it; `None` where it needs no change.
pub fn link(link: &str, base: &str) -> Option<String> {
    moves(link.as_bytes(), base.as_bytes()).then(|| format!("{base}{link}"))
}

/// Returns whether a link must be moved: an absolute path outside `base`. Only the first bytes, one more than
/// `base` has, matter.
fn moves(link: &[u8], base: &[u8]) -> bool {
    link.starts_with(b"/") && !link.starts_with(b"//") && !link.starts_with(base)
}

/// State of the rewriter: its position in the page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Position {
    /// Between tags.
    Text,
    /// Reading the name of an element, after `<`.
    Element,
    /// Between attributes of a tag.
    Tag,
    /// Reading the name of an attribute.
    Name,
    /// After the `=` of an attribute.
    Equals,
    /// Reading a quoted value that is no link, or whose first bytes have been written already.
    Value { quote: u8 },
    /// Reading the first bytes of a URL, held back until it is known whether the link must be moved.
    Url { quote: u8 },
    /// Skipping a script or a style sheet, up to its end tag.
    Raw,
}

/// Rewrites the links of one HTML page, chunk by chunk.
#[derive(Debug)]
pub struct Rewriter {
    base: Vec<u8>,
    at: Position,
    /// The name being read, in lower case; cut one byte after [`NAME_MAX_BYTES`], so that a longer name is
    /// recognizable.
    name: Vec<u8>,
    /// Name of the script or style element whose tag is open or whose content is being read; empty outside of
    /// one.
    raw: Vec<u8>,
    /// First bytes of a URL that are held back.
    held: Vec<u8>,
}

impl Rewriter {
    /// Creates a rewriter that moves links below `base`.
    pub fn new(base: &str) -> Self {
        Self { base: base.into(), at: Position::Text, name: Vec::new(), raw: Vec::new(), held: Vec::new() }
    }

    /// Rewrites the next bytes of the page.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunk.len() + self.held.len() + 64);
        for &byte in chunk {
            self.step(byte, &mut out);
        }
        out
    }

    /// Returns the bytes still held back when the page ends.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        if let Position::Url { quote } = self.at {
            return self.url(byte, quote, out);
        }
        out.push(byte);
        self.at = match (self.at, byte) {
            (Position::Text, b'<') => self.begin(Position::Element),
            (Position::Text, _) => Position::Text,
            (Position::Raw, byte) => self.raw_text(byte),
            (Position::Element, b'>') | (Position::Tag | Position::Name | Position::Equals, b'>') => {
                self.end_of_tag()
            }
            (Position::Value { quote }, byte) if byte == quote => Position::Tag,
            (Position::Value { quote }, _) => Position::Value { quote },
            (_, b'<') => self.begin(Position::Element),
            (Position::Element, byte) if byte.is_ascii_whitespace() => {
                self.note_raw_element();
                Position::Tag
            }
            (Position::Element, byte) => self.add_to_name(byte, Position::Element),
            (Position::Equals, quote @ (b'"' | b'\'')) if ATTRIBUTES.contains(&self.name.as_slice()) => {
                Position::Url { quote }
            }
            (Position::Equals, quote @ (b'"' | b'\'')) => Position::Value { quote },
            (Position::Equals, byte) if byte.is_ascii_whitespace() => Position::Equals,
            (Position::Name, b'=') => Position::Equals,
            (Position::Name, byte) if !byte.is_ascii_whitespace() => self.add_to_name(byte, Position::Name),
            // White space is allowed between a name and its `=`.
            (Position::Tag, b'=') => Position::Equals,
            (Position::Tag, byte) if !byte.is_ascii_whitespace() && byte != b'/' => {
                self.begin(Position::Name);
                self.add_to_name(byte, Position::Name)
            }
            (Position::Equals | Position::Name | Position::Tag, _) => Position::Tag,
            (Position::Url { quote }, _) => Position::Url { quote },
        };
    }

    fn begin(&mut self, next: Position) -> Position {
        self.name.clear();
        next
    }

    fn add_to_name(&mut self, byte: u8, next: Position) -> Position {
        if self.name.len() <= NAME_MAX_BYTES {
            self.name.push(byte.to_ascii_lowercase());
        }
        next
    }

    fn note_raw_element(&mut self) {
        if RAW_ELEMENTS.contains(&self.name.as_slice()) {
            self.raw.clone_from(&self.name);
        }
    }

    fn end_of_tag(&mut self) -> Position {
        if self.at == Position::Element {
            self.note_raw_element();
        }
        self.name.clear();
        if self.raw.is_empty() { Position::Text } else { Position::Raw }
    }

    /// Looks for `</script` or `</style`; `name` holds the part of it seen so far.
    fn raw_text(&mut self, byte: u8) -> Position {
        let byte = byte.to_ascii_lowercase();
        let expected = match self.name.len() {
            0 => Some(b'<'),
            1 => Some(b'/'),
            seen => self.raw.get(seen - 2).copied(),
        };
        if expected == Some(byte) {
            self.name.push(byte);
        } else {
            self.name.clear();
            if byte == b'<' {
                self.name.push(byte);
            }
        }
        if self.name.len() < self.raw.len() + 2 {
            return Position::Raw;
        }
        self.raw.clear();
        self.begin(Position::Tag)
    }

    /// Holds the first bytes of a URL until it is known whether the link must be moved.
    fn url(&mut self, byte: u8, quote: u8, out: &mut Vec<u8>) {
        let ends = byte == quote;
        if !ends {
            self.held.push(byte);
        }
        if !ends && self.held.len() <= self.base.len() && self.may_move() {
            return;
        }
        if moves(&self.held, &self.base) {
            out.extend_from_slice(&self.base);
        }
        out.append(&mut self.held);
        if ends {
            out.push(byte);
        }
        self.at = if ends { Position::Tag } else { Position::Value { quote } };
    }

    /// Returns whether the held bytes do not yet decide whether the link must be moved.
    fn may_move(&self) -> bool {
        self.held == b"/" || self.base.starts_with(&self.held)
    }
}

/// A body whose HTML is rewritten while it streams.
pub struct RewrittenBody<B> {
    inner: B,
    rewriter: Rewriter,
}

impl<B> RewrittenBody<B> {
    /// Creates a body that rewrites the links of `inner`.
    pub fn new(inner: B, base: &str) -> Self {
        Self { inner, rewriter: Rewriter::new(base) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RewrittenBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let rewritten = frame.map_data(|data| Bytes::from(this.rewriter.push(&data)));
                Poll::Ready(Some(Ok(rewritten)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let rest = this.rewriter.finish();
                Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(Bytes::from(rest)))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page, rewritten in chunks of a size.
    fn html(page: &str, base: &str, chunk: usize) -> String {
        let mut rewriter = Rewriter::new(base);
        let mut out: Vec<u8> = page.as_bytes().chunks(chunk).flat_map(|c| rewriter.push(c)).collect();
        out.extend(rewriter.finish());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn absolute_links_move_below_the_proxy_and_others_stay() {
        let page = "<a href=\"/x\">t</a><IMG alt='<' SRC = '/y.png'/><a href=\"http://e/x\">e</a><a href=\"z\">z</a>\
                    <a href=\"//e/x\">e</a><a href=\"/p/proxy/x\">x</a><a href='/'>root</a><a href=\"/p\">p</a>\
                    <script src=\"/s.js\">if (a<b) src=\"/no\"</script ><a hrefs=\"/no\" href=\"/é\">é</a> src=\"/no\"";
        let want = "<a href=\"/p/proxy/x\">t</a><IMG alt='<' SRC = '/p/proxy/y.png'/><a href=\"http://e/x\">e</a>\
                    <a href=\"z\">z</a><a href=\"//e/x\">e</a><a href=\"/p/proxy/x\">x</a>\
                    <a href='/p/proxy/'>root</a><a href=\"/p/proxy/p\">p</a>\
                    <script src=\"/p/proxy/s.js\">if (a<b) src=\"/no\"</script >\
                    <a hrefs=\"/no\" href=\"/p/proxy/é\">é</a> src=\"/no\"";
        for chunk in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(html(page, "/p/proxy", chunk), want, "in chunks of {chunk}");
        }
    }

    #[test]
    fn a_page_without_an_end_loses_nothing() {
        for page in [
            "<a href=",
            "<a href=\"",
            "<a href=\"/p",
            "<a href=\"/",
            "",
            "href='",
            "<script",
            "<script></scr",
        ] {
            assert_eq!(html(page, "/p/proxy", 1), page);
        }
    }

    #[test]
    fn nothing_but_the_start_of_a_link_is_held_back() {
        let mut rewriter = Rewriter::new("/p/proxy");
        let mut sent = 0;
        let page = "<a href=".repeat(1000) + "<a href=\"/p/prox";
        for byte in page.as_bytes() {
            sent += rewriter.push(&[*byte]).len();
        }
        assert_eq!(page.len() - sent, "/p/prox".len());
        assert_eq!(
            rewriter.push(&b"a".repeat(1 << 20)).len(),
            (1 << 20) + "/p/prox".len() + "/p/proxy".len()
        );
    }
}
