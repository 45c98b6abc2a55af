//! Decoding: turns a document into the value that Go's typed decoder would make of it. Type errors carry
//! the messages of Kubernetes' JSON library; unknown and duplicate fields are collected for field
//! validation.
//!
//! The result has no nulls, no unknown fields, and no zero scalars where Go could not tell them from absent
//! ones. Empty lists and maps stay, because validation can tell those apart; [`super::encode`] drops them
//! later.

use std::collections::HashSet;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::{Schema, StructId, Table, Type, bare, go_type, time};
use crate::go;
use crate::json::{self, Node};
use crate::quantity::Quantity;

/// Maximum number of strict errors that are kept, as upstream.
const MAX_STRICT: usize = 100;

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The typed value.
    pub value: Value,
    /// `unknown field "spec.foo"` and `duplicate field "spec.replicas"`, in the order found.
    pub strict: Vec<String>,
}

/// Decodes a document as a kind; the error is the message of Go's decoder.
pub fn decode(schema: Schema, node: &Node) -> Result<Decoded, String> {
    decode_type(&Type::Struct(schema.id()), node)
}

/// Decodes a document as any type of the table.
pub fn decode_type(of: &Type, node: &Node) -> Result<Decoded, String> {
    let mut decoder = Decoder::default();
    let value = decoder.value(of, node)?;
    match decoder.saved {
        Some(message) => Err(message),
        None => {
            Ok(Decoded { value: value.unwrap_or_else(|| Value::Object(Map::new())), strict: decoder.strict })
        }
    }
}

#[derive(Default)]
struct Decoder {
    /// The first type error: decoding goes on after it, but an error that ends decoding takes precedence.
    saved: Option<String>,
    strict: Vec<String>,
    seen: HashSet<String>,
    /// The struct whose field is being decoded, and the Go path to that field.
    holder: Option<StructId>,
    stack: Vec<String>,
    /// The path printed in strict errors, with indexes and map keys.
    path: String,
}

type Outcome = Result<Option<Value>, String>;

impl Decoder {
    fn mismatch(&self, what: &str, of: &str) -> String {
        match self.holder {
            Some(id) => {
                let (name, field) = (Table::get().at(id).go_name(), self.stack.join("."));
                format!("json: cannot unmarshal {what} into Go struct field {name}.{field} of type {of}")
            }
            None => format!("json: cannot unmarshal {what} into Go value of type {of}"),
        }
    }

    fn save(&mut self, message: String) {
        self.saved.get_or_insert(message);
    }

    fn wrong(&mut self, node: &Node, of: &Type) -> Outcome {
        let message = self.mismatch(node.go_name(), &go_type(of));
        self.save(message);
        Ok(None)
    }

    fn strict(&mut self, what: &str, field: &str) {
        let path = if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) };
        let message = format!("{what} field {}", go::quote(&path));
        if self.strict.len() < MAX_STRICT && self.seen.insert(message.clone()) {
            self.strict.push(message);
        }
    }

    /// Decodes one value; `None` is Go's zero value, which equals absence.
    fn value(&mut self, of: &Type, node: &Node) -> Outcome {
        self.value_named(of, of, node)
    }

    /// Decodes one value; `shown` is the type printed in messages: the outermost named type.
    fn value_named(&mut self, shown: &Type, of: &Type, node: &Node) -> Outcome {
        match of {
            Type::Pointer(_) if *node == Node::Null => Ok(None),
            Type::Pointer(inner) => {
                let found = self.value(inner, node)?;
                Ok(Some(found.unwrap_or_else(|| super::zero(inner))))
            }
            Type::Named { of: inner, .. } => self.value_named(shown, inner, node),
            // The table's own types end well before the limit. JSON is parsed within it; YAML, protobuf and
            // patches are checked here.
            Type::Any if node.is_deeper_than(json::MAX_DEPTH.saturating_sub(self.stack.len() + 1)) => {
                Err("exceeded max depth".to_owned())
            }
            Type::Any => match node.first_overflow() {
                Some(text) => Err(self.mismatch(&format!("number {text}"), "float64")),
                None => Ok(if *node == Node::Null { None } else { Some(node.to_value()) }),
            },
            Type::Quantity => self.quantity(node),
            Type::IntOrString => self.int_or_string(node),
            Type::Time | Type::MicroTime => self.time(of, node),
            Type::Duration => match node {
                Node::Null => Ok(None),
                Node::String(s) => Ok(Some(Value::String(s.clone()))),
                _ => Err(self.mismatch(node.go_name(), "string")),
            },
            _ if *node == Node::Null => Ok(None),
            Type::Struct(id) => match node {
                Node::Object(members) => self.object(*id, members),
                _ => self.wrong(node, shown),
            },
            Type::List(item) => match node {
                Node::Array(items) => self.list(item, items),
                _ => self.wrong(node, shown),
            },
            Type::Map(item) => match node {
                Node::Object(members) => self.map(item, members),
                _ => self.wrong(node, shown),
            },
            Type::Bytes => self.bytes(node, shown),
            Type::String => match node {
                Node::String(s) if s.is_empty() => Ok(None),
                Node::String(s) => Ok(Some(Value::String(s.clone()))),
                _ => self.wrong(node, shown),
            },
            Type::Bool => match node {
                Node::Bool(b) => Ok(b.then_some(Value::Bool(true))),
                _ => self.wrong(node, shown),
            },
            Type::Int { bits, signed } => self.int(node, shown, *bits, *signed),
            Type::Float(_) => match node {
                Node::Number(text) if node.first_overflow().is_some() => {
                    let message = self.mismatch(&format!("number {text}"), &go_type(bare(shown)));
                    self.save(message);
                    Ok(None)
                }
                Node::Number(text) => Ok(Some(json::number(text)).filter(|v| v.as_f64() != Some(0.0))),
                _ => self.wrong(node, shown),
            },
        }
    }

    fn object(&mut self, id: StructId, members: &[(String, Node)]) -> Outcome {
        let of = Table::get().at(id);
        let mut out = Map::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for (key, node) in members {
            let Some(field) = of.field(key) else {
                self.strict("unknown", key);
                continue;
            };
            if !seen.insert(field.name) {
                self.strict("duplicate", field.name);
            }
            let (holder, depth, path) = (self.holder, self.stack.len(), self.path.len());
            self.holder = Some(id);
            self.stack.extend(field.embedded.iter().map(ToString::to_string));
            self.stack.push(field.name.to_owned());
            self.push_path(field.name);
            match self.value(&field.of, node)? {
                Some(value) => {
                    out.insert(field.name.to_owned(), value);
                }
                // Null leaves a scalar or struct unchanged and clears any other value.
                None if *node != Node::Null || clears_on_null(&field.of) => {
                    out.remove(field.name);
                }
                None => {}
            }
            self.holder = holder;
            self.stack.truncate(depth);
            self.path.truncate(path);
        }
        Ok(Some(Value::Object(out)))
    }

    fn push_path(&mut self, key: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(key);
    }

    fn list(&mut self, item: &Type, nodes: &[Node]) -> Outcome {
        let mut out = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            let path = self.path.len();
            self.path.push_str(&format!("[{i}]"));
            let value = self.value(item, node)?;
            self.path.truncate(path);
            out.push(value.unwrap_or_else(|| super::zero(item)));
        }
        Ok(Some(Value::Array(out)))
    }

    fn map(&mut self, item: &Type, members: &[(String, Node)]) -> Outcome {
        let mut out = Map::new();
        for (key, node) in members {
            if out.contains_key(key) {
                self.strict("duplicate", key);
            }
            let path = self.path.len();
            self.push_path(key);
            let value = self.value(item, node)?;
            self.path.truncate(path);
            // Stored bytes are read back as empty, not as nil.
            let empty = || if bare(item) == &Type::Bytes { Value::from("") } else { super::zero(item) };
            out.insert(key.clone(), value.unwrap_or_else(empty));
        }
        Ok(Some(Value::Object(out)))
    }

    fn int(&mut self, node: &Node, shown: &Type, bits: u8, signed: bool) -> Outcome {
        let Node::Number(text) = node else { return self.wrong(node, shown) };
        let fits = text.parse::<i128>().ok().filter(|n| {
            let low = if signed { -(1i128 << (bits - 1)) } else { 0 };
            let high = if signed { (1i128 << (bits - 1)) - 1 } else { (1i128 << bits) - 1 };
            (low..=high).contains(n)
        });
        match fits {
            Some(0) => Ok(None),
            Some(_) => Ok(Some(json::number(text))),
            None => {
                let message = self.mismatch(&format!("number {text}"), &go_type(bare(shown)));
                self.save(message);
                Ok(None)
            }
        }
    }

    fn bytes(&mut self, node: &Node, shown: &Type) -> Outcome {
        match node {
            Node::String(text) => match decode_base64(text) {
                Ok(bytes) => Ok(Some(Value::String(encode_base64(&bytes)))),
                Err(at) => {
                    self.save(format!("illegal base64 data at input byte {at}"));
                    Ok(None)
                }
            },
            Node::Array(items) => {
                let mut bytes = Vec::new();
                for item in items {
                    let byte = self.int(item, &Type::Int { bits: 8, signed: false }, 8, false)?;
                    bytes.push(byte.and_then(|b| b.as_u64()).and_then(|b| u8::try_from(b).ok()).unwrap_or(0));
                }
                Ok(Some(Value::String(encode_base64(&bytes))))
            }
            _ => self.wrong(node, shown),
        }
    }

    /// Decodes a `resource.Quantity` from the bare text of any scalar; an error ends decoding.
    fn quantity(&mut self, node: &Node) -> Outcome {
        let text = match node {
            Node::Null => return Ok(None),
            Node::String(text) | Node::Number(text) => text.trim(),
            _ => return Err(crate::quantity::Error::Format.to_string()),
        };
        let quantity = Quantity::parse(text).map_err(|e| e.to_string())?;
        Ok(Some(Value::String(quantity.to_string())))
    }

    fn int_or_string(&mut self, node: &Node) -> Outcome {
        match node {
            Node::Null => Ok(None),
            Node::String(text) => Ok(Some(Value::String(text.clone()))),
            Node::Number(text) => match text.parse::<i32>() {
                Ok(n) => Ok(Some(Value::from(n))),
                Err(_) => Err(self.mismatch(&format!("number {text}"), "int32")),
            },
            _ => Err(self.mismatch(node.go_name(), "int32")),
        }
    }

    fn time(&mut self, of: &Type, node: &Node) -> Outcome {
        match node {
            Node::Null => Ok(None),
            Node::String(text) => {
                let decimals = if *of == Type::Time { 0 } else { 6 };
                time::canonical(text, decimals).map(|t| Some(Value::String(t)))
            }
            _ => Err(self.mismatch(node.go_name(), "string")),
        }
    }
}

fn clears_on_null(of: &Type) -> bool {
    match of {
        Type::Named { of: inner, .. } => clears_on_null(inner),
        Type::Pointer(_) | Type::List(_) | Type::Map(_) | Type::Bytes | Type::Any => true,
        _ => false,
    }
}

fn encode_base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Decodes standard base64 as Go does: padding required, line ends skipped, trailing bits ignored. The
/// error is Go's offset.
fn decode_base64(text: &str) -> Result<Vec<u8>, usize> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    ENGINE.decode(&clean).map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        _ => clean.len() - clean.len() % 4,
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
