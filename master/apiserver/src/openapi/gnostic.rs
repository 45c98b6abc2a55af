//! The v2 document in protobuf, as kubectl's discovery client reads it: the messages of gnostic-models'
//! `OpenAPIv2.proto`, encoded from the JSON document. `mod.rs` calls it once.
//!
//! Each function writes one message; the numbers are field numbers of that file. Fields that Ephor's
//! documents never contain (`xml`, `oauth2`, bounds of numbers) are not implemented.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

/// An encoded message: its fields in order.
#[derive(Default)]
struct Message(Vec<u8>);

/// Encodes a Swagger 2.0 document as `openapi.v2.Document`.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.with(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.with(8, |paths| paths.named(2, &document["paths"], path_item));
    out.with(9, |definitions| definitions.named(1, &document["definitions"], schema));
    for requirement in items(&document["security"]) {
        out.with(12, |security| {
            security.named(1, requirement, |scopes, value| scopes.texts(1, value));
        });
    }
    out.with(13, |definitions| {
        definitions.named(1, &document["securityDefinitions"], |item, value| {
            item.with(2, |key| {
                key.text(1, &value["type"]);
                key.text(2, &value["name"]);
                key.text(3, &value["in"]);
                key.text(4, &value["description"]);
            });
        });
    });
    out.0
}

fn path_item(out: &mut Message, item: &Value) {
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            out.with(field, |message| operation(message, found));
        }
    }
    for parameter in items(&item["parameters"]) {
        out.with(9, |message| parameters_item(message, parameter));
    }
}

fn operation(out: &mut Message, operation: &Value) {
    out.texts(1, &operation["tags"]);
    out.text(3, &operation["description"]);
    out.text(5, &operation["operationId"]);
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    for parameter in items(&operation["parameters"]) {
        out.with(8, |message| parameters_item(message, parameter));
    }
    out.with(9, |responses| {
        responses.named(1, &operation["responses"], |value, response| {
            value.with(1, |message| {
                message.text(1, &response["description"]);
                if let Some(found) = response.get("schema") {
                    message.with(2, |item| item.with(1, |message| schema(message, found)));
                }
            });
        });
    });
    out.extensions(13, operation);
}

/// Writes a parameter of the body, of the path, or of the query.
fn parameters_item(out: &mut Message, parameter: &Value) {
    out.with(1, |out| match parameter["in"].as_str() {
        Some("body") => out.with(1, |body| {
            body.text(1, &parameter["description"]);
            body.text(2, &parameter["name"]);
            body.text(3, &parameter["in"]);
            body.flag(4, &parameter["required"]);
            body.with(5, |message| schema(message, &parameter["schema"]));
        }),
        place => out.with(2, |out| {
            // In a query parameter one more field precedes the type, which shifts the field numbers by one.
            let (kind, shift) = if place == Some("path") { (4, 0) } else { (3, 1) };
            out.with(kind, |message| {
                message.flag(1, &parameter["required"]);
                message.text(2, &parameter["in"]);
                message.text(3, &parameter["description"]);
                message.text(4, &parameter["name"]);
                message.text(5 + shift, &parameter["type"]);
                message.flag(19 + shift, &parameter["uniqueItems"]);
            });
        }),
    });
}

fn schema(out: &mut Message, schema: &Value) {
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(4, &schema["description"]);
    if let Some(default) = schema.get("default") {
        out.with(5, |message| any(message, default));
    }
    out.texts(19, &schema["required"]);
    for value in items(&schema["enum"]) {
        out.with(20, |message| any(message, value));
    }
    if let Some(found) = schema.get("additionalProperties") {
        out.with(21, |item| item.with(1, |message| self::schema(message, found)));
    }
    if schema.get("type").is_some() {
        out.with(22, |item| item.text(1, &schema["type"]));
    }
    if let Some(found) = schema.get("items") {
        out.with(23, |list| list.with(1, |message| self::schema(message, found)));
    }
    if schema.get("properties").is_some() {
        out.with(25, |message| message.named(1, &schema["properties"], self::schema));
    }
    out.extensions(31, schema);
}

/// Writes a value of any type, which gnostic keeps as YAML text; JSON is valid YAML.
fn any(out: &mut Message, value: &Value) {
    out.bytes(2, value.to_string().as_bytes());
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

impl Message {
    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
    }

    /// Writes a string field where `value` is a string that is not empty.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, value: &Value) {
        items(value).iter().for_each(|item| self.text(field, item));
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value == &Value::Bool(true) {
            encode_key(field, WireType::Varint, &mut self.0);
            self.0.push(1);
        }
    }

    fn with(&mut self, field: u32, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// Writes a `Named...` message (`name` = 1, `value` = 2) for each member of an object.
    fn named(&mut self, field: u32, members: &Value, write: impl Fn(&mut Message, &Value)) {
        for (name, value) in members.as_object().into_iter().flat_map(Map::iter) {
            self.with(field, |message| {
                message.bytes(1, name.as_bytes());
                message.with(2, |inner| write(inner, value));
            });
        }
    }

    /// Writes the members whose names begin with `x-`.
    fn extensions(&mut self, field: u32, of: &Value) {
        for (name, value) in of.as_object().into_iter().flat_map(Map::iter) {
            if name.starts_with("x-") {
                self.with(field, |message| {
                    message.bytes(1, name.as_bytes());
                    message.with(2, |inner| any(inner, value));
                });
            }
        }
    }
}
