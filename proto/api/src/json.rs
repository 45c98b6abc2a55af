//! A JSON document as it was written: the order of members, duplicate keys and the text of numbers are
//! kept, as strict field validation needs. Syntax errors read as those of Go's `encoding/json`. Parsing
//! never recurses, so no nesting can exhaust the stack.

use serde_json::{Map, Number, Value};

use crate::go;

/// Maximum nesting that is read. It is below the 128 of `serde_json`, which reads stored objects, so an
/// accepted object can be read again. Go's limit is 10,000; no Kubernetes object comes near either.
pub const MAX_DEPTH: usize = 120;

/// One value of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as written.
    Number(String),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Node>),
    /// An object: its members in order; keys may repeat.
    Object(Vec<(String, Node)>),
}

impl Node {
    /// Returns the name of this kind of value in Go's type errors.
    pub fn go_name(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Bool(_) => "bool",
            Node::Number(_) => "number",
            Node::String(_) => "string",
            Node::Array(_) => "array",
            Node::Object(_) => "object",
        }
    }

    /// Returns the last member with this name.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Object(members) => members.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// Returns whether objects and lists are nested deeper than `limit`.
    pub fn is_deeper_than(&self, limit: usize) -> bool {
        let mut left = vec![(self, limit)];
        while let Some((node, limit)) = left.pop() {
            let inner: &mut dyn Iterator<Item = &Node> = match node {
                Node::Array(items) => &mut items.iter(),
                Node::Object(members) => &mut members.iter().map(|(_, value)| value),
                _ => continue,
            };
            let Some(limit) = limit.checked_sub(1) else { return true };
            left.extend(inner.map(|node| (node, limit)));
        }
        false
    }

    /// Returns whether there are more than `limit` values, this one and those inside it counted.
    pub fn is_larger_than(&self, limit: usize) -> bool {
        let (mut left, mut count) = (vec![self], 0);
        while let Some(node) = left.pop() {
            count += 1;
            if count > limit {
                return true;
            }
            match node {
                Node::Array(items) => left.extend(items),
                Node::Object(members) => left.extend(members.iter().map(|(_, value)| value)),
                _ => {}
            }
        }
        false
    }

    /// Returns the first number whose amount exceeds every double, and which [`Node::to_value`] therefore
    /// cannot convert; `None` if there is none.
    pub fn first_overflow(&self) -> Option<&str> {
        match self {
            Node::Number(text) => number(text).is_null().then_some(text),
            Node::Array(items) => items.iter().find_map(Node::first_overflow),
            Node::Object(members) => members.iter().find_map(|(_, value)| value.first_overflow()),
            _ => None,
        }
    }

    /// Converts to an untyped value; of repeated keys the last wins. Whole numbers that fit 64 bits stay
    /// whole. A number that [`Node::first_overflow`] finds becomes null.
    pub fn to_value(&self) -> Value {
        match self {
            Node::Null => Value::Null,
            Node::Bool(b) => Value::Bool(*b),
            Node::Number(text) => number(text),
            Node::String(s) => Value::String(s.clone()),
            Node::Array(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Node::Object(members) => {
                Value::Object(members.iter().map(|(k, v)| (k.clone(), v.to_value())).collect::<Map<_, _>>())
            }
        }
    }
}

/// Converts a number's text to a JSON number; null if no double holds it.
pub(crate) fn number(text: &str) -> Value {
    if let Ok(n) = text.parse::<i64>() {
        return Value::from(n);
    }
    if let Ok(n) = text.parse::<u64>() {
        return Value::from(n);
    }
    text.parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

impl From<&Value> for Node {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Node::Null,
            Value::Bool(b) => Node::Bool(*b),
            Value::Number(n) => Node::Number(n.to_string()),
            Value::String(s) => Node::String(s.clone()),
            Value::Array(items) => Node::Array(items.iter().map(Node::from).collect()),
            Value::Object(members) => {
                Node::Object(members.iter().map(|(k, v)| (k.clone(), Node::from(v))).collect())
            }
        }
    }
}

/// An object or list whose end has not been read yet.
enum Open {
    Array(Vec<Node>),
    Object { members: Vec<(String, Node)>, key: Option<String> },
}

/// Parses one document; the error is Go's message.
pub fn parse(data: &[u8]) -> Result<Node, String> {
    let mut reader = Reader { data, at: 0 };
    let mut open: Vec<Open> = Vec::new();
    loop {
        // A value is expected at this position.
        let mut done = match reader.next_token() {
            None => return Err(end()),
            Some(b'[') => {
                push(&mut open, Open::Array(Vec::new()), b'[')?;
                if reader.peek() != Some(b']') {
                    continue;
                }
                reader.at += 1;
                close(&mut open)
            }
            Some(b'{') => {
                push(&mut open, Open::Object { members: Vec::new(), key: None }, b'{')?;
                if reader.peek() != Some(b'}') {
                    reader.key(&mut open)?;
                    continue;
                }
                reader.at += 1;
                close(&mut open)
            }
            Some(first) => Some(reader.scalar(first)?),
        };
        // Add the finished value to its parent, and repeat that while it finishes the parent.
        while let Some(value) = done.take() {
            match open.last_mut() {
                None => {
                    return match reader.next_token() {
                        None => Ok(value),
                        Some(c) => Err(invalid(c, "after top-level value")),
                    };
                }
                Some(Open::Array(items)) => {
                    items.push(value);
                    match reader.next_token() {
                        Some(b',') => {}
                        Some(b']') => done = close(&mut open),
                        Some(c) => return Err(invalid(c, "after array element")),
                        None => return Err(end()),
                    }
                }
                Some(Open::Object { members, key }) => {
                    members.push((key.take().unwrap_or_default(), value));
                    match reader.next_token() {
                        Some(b',') => reader.key(&mut open)?,
                        Some(b'}') => done = close(&mut open),
                        Some(c) => return Err(invalid(c, "after object key:value pair")),
                        None => return Err(end()),
                    }
                }
            }
        }
    }
}

fn push(open: &mut Vec<Open>, what: Open, c: u8) -> Result<(), String> {
    if open.len() >= MAX_DEPTH {
        return Err(invalid(c, "exceeded max depth"));
    }
    open.push(what);
    Ok(())
}

fn close(open: &mut Vec<Open>) -> Option<Node> {
    open.pop().map(|o| match o {
        Open::Array(items) => Node::Array(items),
        Open::Object { members, .. } => Node::Object(members),
    })
}

fn end() -> String {
    "unexpected end of JSON input".into()
}

fn invalid(c: u8, place: &str) -> String {
    let quoted = match c {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        c => {
            let quoted = go::quote(&char::from(c).to_string());
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    };
    format!("invalid character {quoted} {place}")
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Skips white space and returns the next byte without consuming it.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.data.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.data.get(self.at).copied()
    }

    /// Skips white space and consumes the next byte.
    fn next_token(&mut self) -> Option<u8> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Reads `"key" :` for the innermost open object.
    fn key(&mut self, open: &mut [Open]) -> Result<(), String> {
        match self.next_token() {
            Some(b'"') => {}
            Some(c) => return Err(invalid(c, "looking for beginning of object key string")),
            None => return Err(end()),
        }
        let name = self.string()?;
        match self.next_token() {
            Some(b':') => {}
            Some(c) => return Err(invalid(c, "after object key")),
            None => return Err(end()),
        }
        if let Some(Open::Object { key, .. }) = open.last_mut() {
            *key = Some(name);
        }
        Ok(())
    }

    fn scalar(&mut self, first: u8) -> Result<Node, String> {
        match first {
            b'"' => self.string().map(Node::String),
            b't' => self.literal("true").map(|()| Node::Bool(true)),
            b'f' => self.literal("false").map(|()| Node::Bool(false)),
            b'n' => self.literal("null").map(|()| Node::Null),
            b'-' | b'0'..=b'9' => self.number(first),
            c => Err(invalid(c, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes().skip(1) {
            match self.data.get(self.at) {
                Some(c) if *c == expected => self.at += 1,
                Some(c) => {
                    let place = format!("in literal {word} (expecting '{}')", char::from(expected));
                    return Err(invalid(*c, &place));
                }
                None => return Err(end()),
            }
        }
        Ok(())
    }

    fn digits(&mut self, place: &str) -> Result<(), String> {
        match self.data.get(self.at) {
            Some(b'0'..=b'9') => {}
            Some(c) => return Err(invalid(*c, place)),
            None => return Err(end()),
        }
        while matches!(self.data.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self, first: u8) -> Result<Node, String> {
        let start = self.at - 1;
        let lead = if first == b'-' {
            let lead = self.data.get(self.at).copied();
            match lead {
                Some(b'0') => self.at += 1,
                _ => self.digits("in numeric literal")?,
            }
            lead
        } else {
            Some(first)
        };
        if first != b'-' && lead != Some(b'0') {
            while matches!(self.data.get(self.at), Some(b'0'..=b'9')) {
                self.at += 1;
            }
        }
        if self.data.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.data.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.data.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(Node::Number(String::from_utf8_lossy(&self.data[start..self.at]).into_owned()))
    }

    /// Reads the rest of a string after its opening quote. Invalid UTF-8 and lone surrogates become U+FFFD.
    fn string(&mut self) -> Result<String, String> {
        let mut out: Vec<u8> = Vec::new();
        loop {
            let Some(c) = self.data.get(self.at).copied() else { return Err(end()) };
            self.at += 1;
            match c {
                b'"' => return Ok(String::from_utf8_lossy(&out).into_owned()),
                b'\\' => self.escape(&mut out)?,
                c if c < 0x20 => return Err(invalid(c, "in string literal")),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let Some(c) = self.data.get(self.at).copied() else { return Err(end()) };
        self.at += 1;
        let plain = match c {
            b'"' | b'\\' | b'/' => c,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) && self.data[self.at..].starts_with(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let low = self.hex()?;
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    } else {
                        self.at = back;
                    }
                }
                let c = char::from_u32(code).unwrap_or('\u{fffd}');
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => return Err(invalid(c, "in string escape code")),
        };
        out.push(plain);
        Ok(())
    }

    fn hex(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(c) = self.data.get(self.at).copied() else { return Err(end()) };
            let Some(digit) = char::from(c).to_digit(16) else {
                return Err(invalid(c, "in \\u hexadecimal character escape"));
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests;
