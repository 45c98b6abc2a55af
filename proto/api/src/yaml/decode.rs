//! Decodes a tree of YAML nodes to a JSON document: aliases are followed, `<<` is merged, keys become
//! strings, and numbers are written as Go's `encoding/json` does. Does the work of go-yaml's `decoder` and
//! `YAMLToJSON`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Document;
use super::resolve::{Scalar, resolve};
use super::tree::{Id, NodeKind, Tree};
use crate::go;
use crate::json::{MAX_DEPTH, Node};

/// Number of decoded nodes below which 99 of 100 may come from aliases, as in go-yaml.
const ALIAS_RATIO_LOW: f64 = 400_000.0;

/// Number of decoded nodes from which only 10 of 100 may come from aliases.
const ALIAS_RATIO_HIGH: f64 = 4_000_000.0;

/// Maximum number of repeated keys that are reported.
const MAX_REPEATED: usize = 1000;

/// The members of a mapping by name.
type Members = BTreeMap<String, Node>;

/// Decodes a document.
///
/// # Errors
///
/// Fails as [`super::parse`] does.
pub(super) fn decode(tree: &Tree, alias_bytes: usize) -> Result<Document, String> {
    let mut decoder = Decoder {
        tree,
        followed: Vec::new(),
        decoded: 0,
        from_aliases: 0,
        alias_bytes,
        repeated: Vec::new(),
    };
    let node = decoder.value(tree.root, 0)?;
    let repeated = decoder.repeated;
    let strict =
        (!repeated.is_empty()).then(|| format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  ")));
    Ok(Document { node, strict })
}

struct Decoder<'a> {
    tree: &'a Tree,
    /// The aliases that are being followed, outermost first.
    followed: Vec<Id>,
    decoded: u64,
    from_aliases: u64,
    /// Number of bytes that aliases may still repeat.
    alias_bytes: usize,
    /// One error message for each key that a mapping has twice.
    repeated: Vec<String>,
}

impl Decoder<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Node, String> {
        self.count(id, depth)?;
        match &self.tree.nodes[id].kind {
            NodeKind::Scalar { text, tag, plain } => json(scalar(text, tag, *plain)?),
            NodeKind::Alias { .. } => self.follow(id, |decoder, of| decoder.value(of, depth + 1)),
            NodeKind::Sequence(items) => {
                let items: Result<Vec<Node>, String> =
                    items.iter().map(|item| self.value(*item, depth + 1)).collect();
                items.map(Node::Array)
            }
            NodeKind::Mapping(_) => {
                let mut members = Members::new();
                self.members(id, depth, &mut members)?;
                Ok(Node::Object(members.into_iter().collect()))
            }
        }
    }

    /// Adds the members of a mapping in order; a member that exists already is replaced.
    fn members(&mut self, id: Id, depth: usize, into: &mut Members) -> Result<(), String> {
        let NodeKind::Mapping(children) = &self.tree.nodes[id].kind else { return Err(want_map()) };
        for pair in children.chunks_exact(2) {
            if self.is_merge(pair[0]) {
                self.merge(pair[1], depth + 1, into)?;
                continue;
            }
            let (key, shown) = self.key(pair[0], depth + 1)?;
            let value = self.value(pair[1], depth + 1)?;
            match into.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(value);
                }
                Entry::Occupied(mut taken) => {
                    if self.repeated.len() < MAX_REPEATED {
                        let line = self.tree.nodes[pair[1]].line + 1;
                        self.repeated.push(format!("line {line}: key {shown} already set in map"));
                    }
                    taken.insert(value);
                }
            }
        }
        Ok(())
    }

    fn is_merge(&self, id: Id) -> bool {
        match &self.tree.nodes[id].kind {
            NodeKind::Scalar { text, tag, plain } => {
                text == "<<" && (*plain || tag == "tag:yaml.org,2002:merge")
            }
            _ => false,
        }
    }

    /// Merges the value of `<<`: a mapping, or a list of mappings of which the first wins.
    fn merge(&mut self, id: Id, depth: usize, into: &mut Members) -> Result<(), String> {
        match &self.tree.nodes[id].kind {
            NodeKind::Mapping(_) | NodeKind::Alias { .. } => self.merge_one(id, depth, into),
            NodeKind::Sequence(items) => {
                items.iter().rev().try_for_each(|item| self.merge_one(*item, depth, into))
            }
            NodeKind::Scalar { .. } => Err(want_map()),
        }
    }

    fn merge_one(&mut self, id: Id, depth: usize, into: &mut Members) -> Result<(), String> {
        self.count(id, depth)?;
        match &self.tree.nodes[id].kind {
            NodeKind::Mapping(_) => self.members(id, depth, into),
            NodeKind::Alias { of, .. } if matches!(self.tree.nodes[*of].kind, NodeKind::Mapping(_)) => self
                .follow(id, |decoder, of| {
                    decoder.count(of, depth + 1)?;
                    decoder.members(of, depth + 1, into)
                }),
            _ => Err(want_map()),
        }
    }

    fn follow<T>(
        &mut self,
        id: Id,
        with: impl FnOnce(&mut Self, Id) -> Result<T, String>,
    ) -> Result<T, String> {
        let NodeKind::Alias { name, of } = &self.tree.nodes[id].kind else { return Err(want_map()) };
        if self.followed.contains(&id) {
            return Err(format!("yaml: anchor '{name}' value contains itself"));
        }
        self.followed.push(id);
        let found = with(self, *of);
        self.followed.pop();
        found
    }

    /// Returns a key as a string, and in the form that Go's errors print.
    fn key(&mut self, id: Id, depth: usize) -> Result<(String, String), String> {
        self.count(id, depth)?;
        let resolved = match &self.tree.nodes[id].kind {
            NodeKind::Scalar { text, tag, plain } => scalar(text, tag, *plain)?,
            NodeKind::Alias { .. } => return self.follow(id, |decoder, of| decoder.key(of, depth + 1)),
            NodeKind::Sequence(_) => return Err("yaml: invalid map key: []interface {}{...}".into()),
            NodeKind::Mapping(_) => {
                return Err("yaml: invalid map key: map[interface {}]interface {}{...}".into());
            }
        };
        let unsupported = |of: &str, key: &str| {
            Err(format!("unsupported map key of type: {of}, key: {key}, value: the member's"))
        };
        match resolved {
            Scalar::Null => unsupported("%!s(<nil>)", "<nil>"),
            Scalar::Uint(v) => unsupported("uint64", &format!("{v:#x}")),
            Scalar::Bool(v) => Ok((v.to_string(), v.to_string())),
            Scalar::Int(v) => Ok((v.to_string(), v.to_string())),
            Scalar::Float(v) => {
                let text = match go::general_float32(v).as_str() {
                    "+Inf" => ".inf".to_owned(),
                    "-Inf" => "-.inf".to_owned(),
                    "NaN" => ".nan".to_owned(),
                    text => text.to_owned(),
                };
                Ok((text, go::general_float(v)))
            }
            Scalar::Text(s) | Scalar::Time(s) | Scalar::Binary(s) => {
                let shown = go::quote(&s);
                Ok((s, shown))
            }
        }
    }

    /// Counts a decoded node, and fails if nesting or growth by aliases exceeds its limit.
    fn count(&mut self, id: Id, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("yaml: exceeded max depth of {MAX_DEPTH}"));
        }
        self.decoded += 1;
        let mut excessive = false;
        if !self.followed.is_empty() {
            self.from_aliases += 1;
            let bytes = match &self.tree.nodes[id].kind {
                NodeKind::Scalar { text, .. } => 1 + text.len(),
                _ => 2,
            };
            let left = self.alias_bytes.checked_sub(bytes);
            self.alias_bytes = left.unwrap_or(0);
            excessive = left.is_none();
        }
        let (decoded, aliased) = (self.decoded as f64, self.from_aliases as f64);
        let range = (decoded - ALIAS_RATIO_LOW) / (ALIAS_RATIO_HIGH - ALIAS_RATIO_LOW);
        let allowed = 0.99 - 0.89 * range.clamp(0.0, 1.0);
        if excessive || (aliased > 100.0 && decoded > 1000.0 && aliased / decoded > allowed) {
            return Err("yaml: document contains excessive aliasing".into());
        }
        Ok(())
    }
}

/// Returns the value of a scalar; a scalar in quotes without a tag is a string.
fn scalar(text: &str, tag: &str, plain: bool) -> Result<Scalar, String> {
    let found = if tag.is_empty() && !plain { Scalar::Text(text.to_owned()) } else { resolve(tag, text)? };
    let Scalar::Binary(encoded) = found else { return Ok(found) };
    // Go's decoder skips line breaks.
    let encoded: String = encoded.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let bytes = STANDARD.decode(encoded);
    let bytes = bytes.map_err(|_| "yaml: !!binary value contains invalid base64 data".to_owned())?;
    Ok(Scalar::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Converts a scalar to JSON.
fn json(scalar: Scalar) -> Result<Node, String> {
    Ok(match scalar {
        Scalar::Null => Node::Null,
        Scalar::Bool(v) => Node::Bool(v),
        Scalar::Int(v) => Node::Number(v.to_string()),
        Scalar::Uint(v) => Node::Number(v.to_string()),
        Scalar::Float(v) if v.is_finite() => Node::Number(go::float(v)),
        Scalar::Float(v) => return Err(format!("json: unsupported value: {}", go::general_float(v))),
        Scalar::Text(s) | Scalar::Time(s) | Scalar::Binary(s) => Node::String(s),
    })
}

fn want_map() -> String {
    "yaml: map merge requires map or sequence of maps as the value".into()
}
