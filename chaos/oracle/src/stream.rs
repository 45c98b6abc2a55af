//! Parses what a watch delivers, in pieces of any length, into the stream that `watches.rs` judges. Does no
//! I/O: the watching clients of simulated and live runs call it.

use serde_json::Value;

use crate::calls::KEY_PREFIX;
use crate::history::{Change, Event, Stream};
use crate::kind::Kind;

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The watch can be resumed from the revision seen last.
    Resume,
    /// The revision seen last was compacted: the client must list again.
    Expired,
}

/// Parser of one watch.
#[derive(Debug)]
pub struct Reader {
    /// Kind of the watched objects.
    kind: Kind,
    /// Incomplete last line, whose rest has not come yet.
    pending: Vec<u8>,
    /// Revision of the last bookmark.
    promised: u64,
    /// How the watch ends, as far as its events have said.
    end: End,
    /// First event at or below the revision of an earlier bookmark, which is a violation; `None` if there was
    /// none.
    broken: Option<String>,
}

impl Reader {
    /// Creates a parser of a watch of objects of this kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, pending: Vec::new(), promised: 0, end: End::Resume, broken: None }
    }

    /// Parses the bytes that have come and adds their events to `stream`; returns the new events.
    pub fn take(&mut self, bytes: &[u8], stream: &mut Stream) -> Vec<Event> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            events.extend(self.line(&line, stream));
        }
        events
    }

    /// Returns how the watch ended.
    pub fn end(&self) -> End {
        self.end
    }

    /// Takes the description of an event that contradicts a bookmark, if there was one.
    pub fn broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    fn line(&mut self, line: &[u8], stream: &mut Stream) -> Option<Event> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let object = &event["object"];
        if event["type"] == "ERROR" {
            self.end = if object["code"] == 410 { End::Expired } else { End::Resume };
            return None;
        }
        let revision: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        if event["type"] == "BOOKMARK" {
            stream.reached = stream.reached.max(revision);
            self.promised = stream.reached;
            return None;
        }
        // This is the property "Bookmarkable" of etcd's API guarantees.
        if revision <= self.promised && self.broken.is_none() {
            self.broken = Some(format!("{revision} after a bookmark at {}", self.promised));
        }
        stream.reached = revision;
        let name = object["metadata"]["name"].as_str()?;
        if !name.starts_with(KEY_PREFIX) {
            return None;
        }
        let (key, value) = (self.kind.key(name), self.kind.versioned(object)?.value);
        let deleted = event["type"] == "DELETED";
        let change = if deleted { Change::Deleted { value } } else { Change::Put { value } };
        let event = Event { revision, key, change };
        stream.events.push(event.clone());
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(kind: &str, name: &str, revision: u64) -> Vec<u8> {
        let metadata = json!({"name": name, "resourceVersion": revision.to_string()});
        let object = json!({"metadata": metadata, "data": {"v": "x"}});
        format!("{}\n", json!({"type": kind, "object": object})).into_bytes()
    }

    fn stream() -> Stream {
        Stream { from: 1, listed: None, events: Vec::new(), reached: 1 }
    }

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let mut bytes = line("ADDED", "reg-1", 2);
        bytes.extend(line("ADDED", "kube-root-ca.crt", 3));
        bytes.extend(line("DELETED", "reg-1", 4));
        bytes.extend(line("BOOKMARK", "", 9));
        for size in [1, 7, bytes.len()] {
            let (mut reader, mut stream) = (Reader::new(Kind::ConfigMap), stream());
            let events: Vec<_> = bytes.chunks(size).flat_map(|part| reader.take(part, &mut stream)).collect();
            assert_eq!((events.len(), stream.reached, reader.end()), (2, 9, End::Resume));
            assert_eq!((reader.broken(), &events), (None, &stream.events));
        }
    }

    #[test]
    fn what_comes_after_a_bookmark_that_excluded_it_is_told_once() {
        let (mut reader, mut stream) = (Reader::new(Kind::ConfigMap), stream());
        reader.take(&line("BOOKMARK", "", 9), &mut stream);
        reader.take(&line("ADDED", "reg-1", 8), &mut stream);
        assert_eq!(reader.broken().as_deref(), Some("8 after a bookmark at 9"));
        assert_eq!(reader.broken(), None);
    }

    #[test]
    fn what_is_no_longer_known_is_told_apart_from_other_ends() {
        let error =
            |code: u16| format!("{}\n", json!({"type": "ERROR", "object": {"code": code}})).into_bytes();
        for (code, end) in [(410, End::Expired), (500, End::Resume)] {
            let mut reader = Reader::new(Kind::ConfigMap);
            reader.take(&error(code), &mut stream());
            assert_eq!(reader.end(), end);
        }
    }
}
