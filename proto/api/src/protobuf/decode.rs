//! Decodes a protobuf message of a schema table's struct to its JSON document. Fields that the table does
//! not have are skipped, as Go's generated code does.
//!
//! When a singular message occurs again, its bytes are joined with the earlier ones (protobuf merges
//! messages whose bytes are joined), so that each byte is read only once per level of nesting.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Number;

use super::leaf;
use super::wire::{Error, Reader, Wire};
use crate::json::Node;
use crate::schema::{Field, Schema, StructId, Table, Type};

/// Maximum nesting of messages; no type of the API comes near it.
const MAX_DEPTH: usize = 100;

/// Decodes the message of a kind, without apiVersion and kind, which are not in it. The caller still has to
/// pass the result to [`crate::schema::decode`], which checks and prunes it like any document.
///
/// # Errors
///
/// Fails if the bytes are not a message of that kind.
pub fn message(schema: Schema, raw: &[u8]) -> Result<Node, Error> {
    Ok(Node::Object(members(schema.id(), raw, 0)?))
}

type Members = Vec<(String, Node)>;

/// The occurrences of one field found so far.
enum Slot<'a> {
    Scalar(Node),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
    Message(&'a Type, Cow<'a, [u8]>),
    Embedded(StructId, Cow<'a, [u8]>),
}

fn members(id: StructId, data: &[u8], depth: usize) -> Result<Members, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Depth);
    }
    let of = Table::get().at(id);
    // In the order of first occurrence; there are at most as many as the struct has fields.
    let mut slots: Vec<(u32, &str, Slot<'_>)> = Vec::new();
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        let seen = slots.iter_mut().find(|(t, _, _)| *t == tag);
        if let Some((_, inner)) = of.embedded.iter().find(|(t, _)| *t == tag) {
            let bytes = wire.bytes(Table::get().at(*inner).go_name())?;
            match seen {
                Some((_, _, Slot::Embedded(_, joined))) => joined.to_mut().extend_from_slice(bytes),
                _ => slots.push((tag, "", Slot::Embedded(*inner, Cow::Borrowed(bytes)))),
            }
        } else if let Some(field) = of.fields.iter().find(|f| f.tag == tag && f.owner == id)
            && let Some(first) = add(seen.map(|(_, _, slot)| slot), field, wire, depth)?
        {
            slots.push((tag, field.name, first));
        }
    }
    let mut out = Members::with_capacity(slots.len());
    for (_, name, slot) in slots {
        let node = match slot {
            Slot::Scalar(node) => node,
            Slot::List(items) => Node::Array(items),
            Slot::Map(entries) => Node::Object(entries.into_iter().collect()),
            Slot::Message(of, bytes) => value(name, of, Wire::Bytes(&bytes), depth)?,
            Slot::Embedded(inner, bytes) => {
                out.append(&mut members(inner, &bytes, depth + 1)?);
                continue;
            }
        };
        out.push((name.to_owned(), node));
    }
    Ok(out)
}

/// Adds one occurrence of a field to its slot, or returns a new slot for the first one.
fn add<'a>(
    seen: Option<&mut Slot<'a>>,
    field: &'a Field,
    wire: Wire<'a>,
    depth: usize,
) -> Result<Option<Slot<'a>>, Error> {
    let name = field.name;
    match shape(&field.of) {
        Type::List(item) => {
            let mut first = Vec::new();
            match seen {
                Some(Slot::List(items)) => push(items, name, item, wire, depth)?,
                _ => push(&mut first, name, item, wire, depth)?,
            }
            Ok((!first.is_empty()).then_some(Slot::List(first)))
        }
        Type::Map(item) => {
            let (key, node) = entry(name, item, wire.bytes(name)?, depth)?;
            match seen {
                Some(Slot::Map(entries)) => {
                    entries.insert(key, node);
                    Ok(None)
                }
                _ => Ok(Some(Slot::Map(BTreeMap::from([(key, node)])))),
            }
        }
        of if is_message(of) => {
            let bytes = wire.bytes(name)?;
            match seen {
                Some(Slot::Message(_, joined)) => {
                    joined.to_mut().extend_from_slice(bytes);
                    Ok(None)
                }
                _ => Ok(Some(Slot::Message(of, Cow::Borrowed(bytes)))),
            }
        }
        of => {
            let node = value(name, of, wire, depth)?;
            match seen {
                Some(slot) => {
                    *slot = Slot::Scalar(node);
                    Ok(None)
                }
                None => Ok(Some(Slot::Scalar(node))),
            }
        }
    }
}

/// Strips pointers and type names, except the name of a list, which is a message of its own (`Verbs`,
/// `ExtraValue`).
fn shape(of: &Type) -> &Type {
    match of {
        Type::Pointer(inner) => shape(inner),
        Type::Named { of: inner, .. } if !matches!(**inner, Type::List(_)) => shape(inner),
        other => other,
    }
}

fn is_message(of: &Type) -> bool {
    !matches!(of, Type::String | Type::Bytes | Type::Bool | Type::Int { .. } | Type::Float(_))
}

/// Appends one occurrence of a list field: one item, or a packed run of numbers.
fn push(items: &mut Vec<Node>, name: &str, item: &Type, wire: Wire<'_>, depth: usize) -> Result<(), Error> {
    let of = shape(item);
    match wire {
        Wire::Bytes(run) if matches!(of, Type::Int { .. } | Type::Bool) => {
            let mut run = Reader::new(run);
            while let Some(n) = run.packed()? {
                items.push(value(name, of, Wire::Varint(n), depth)?);
            }
        }
        wire => items.push(value(name, of, wire, depth)?),
    }
    Ok(())
}

/// Decodes an entry of a map: key=1, value=2; either may be missing.
fn entry(name: &str, item: &Type, data: &[u8], depth: usize) -> Result<(String, Node), Error> {
    let of = shape(item);
    let mut key = String::new();
    let mut found = match of {
        Type::Bool | Type::Int { .. } => Wire::Varint(0),
        Type::Float(_) => Wire::Fixed64(0),
        _ => Wire::Bytes(&[]),
    };
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => key = wire.text(name)?,
            2 => found = wire,
            _ => {}
        }
    }
    Ok((key, value(name, of, found, depth)?))
}

/// Decodes one value; `of` is a [`shape`].
fn value(name: &str, of: &Type, wire: Wire<'_>, depth: usize) -> Result<Node, Error> {
    Ok(match of {
        Type::String => Node::String(wire.text(name)?),
        Type::Bytes => Node::String(STANDARD.encode(wire.bytes(name)?)),
        Type::Bool => Node::Bool(wire.varint(name)? != 0),
        Type::Int { bits, signed } => {
            let n = wire.varint(name)?;
            Node::Number(match (bits, signed) {
                (64, true) => n.cast_signed().to_string(),
                (64, false) => n.to_string(),
                (_, true) => leaf::low_bits(n).to_string(),
                (_, false) => leaf::low_bits(n).cast_unsigned().to_string(),
            })
        }
        Type::Float(_) => {
            let n = wire.float(name)?;
            let number =
                Number::from_f64(n).ok_or_else(|| Error::Value(format!("json: unsupported value: {n}")))?;
            Node::Number(number.to_string())
        }
        Type::Time => leaf::time(wire.bytes(name)?, 0)?,
        Type::MicroTime => leaf::time(wire.bytes(name)?, 6)?,
        Type::Duration => leaf::duration(wire.bytes(name)?)?,
        Type::Quantity => leaf::quantity(wire.bytes(name)?)?,
        Type::IntOrString => leaf::int_or_string(wire.bytes(name)?)?,
        Type::Any => leaf::raw(wire.bytes(name)?)?,
        Type::Struct(id) => Node::Object(members(*id, wire.bytes(name)?, depth + 1)?),
        Type::Named { of: inner, .. } => items(name, inner, wire.bytes(name)?, depth)?,
        Type::Pointer(inner) => value(name, shape(inner), wire, depth)?,
        Type::List(_) | Type::Map(_) => {
            return Err(Error::Value(format!("proto: {name} has no protobuf form")));
        }
    })
}

/// Decodes a named list: a message with its items in field 1.
fn items(name: &str, of: &Type, data: &[u8], depth: usize) -> Result<Node, Error> {
    let Type::List(item) = of else {
        return Err(Error::Value(format!("proto: {name} has no protobuf form")));
    };
    let mut items = Vec::new();
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        if tag == 1 {
            push(&mut items, name, item, wire, depth)?;
        }
    }
    Ok(Node::Array(items))
}
