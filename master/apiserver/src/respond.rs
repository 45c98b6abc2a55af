//! Encodes objects as answers: JSON or YAML; whole, as a Table or as metadata alone. Handlers and watches
//! call this file after `negotiate.rs` has chosen the representation. Lists are encoded by `respond/list.rs`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use proto_api::status::Status;
use proto_api::yaml;
use serde_json::{Value, json};
use storage::{Object, Revision};

use crate::body::{self, Body};
use crate::negotiate::{Encoding, Representation, Shape};
use crate::registry::{Target, convert, object};
use crate::table::{self, Row, Rows};

mod list;

/// How much of an object a Table row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IncludeObject {
    /// No part of the object.
    None,
    /// The object's metadata, the default.
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Parses the `includeObject` query parameter.
    ///
    /// # Errors
    ///
    /// 400 for an unknown value.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}, must be None, Object, or Metadata"
            ))),
        }
    }
}

/// How objects are encoded for one client.
#[derive(Clone, Copy)]
pub struct ResponseFormat<'a> {
    /// Kind and namespace of the objects.
    pub target: Target<'a>,
    /// Encoding and form that the client accepts.
    pub representation: Representation,
    /// Part of the object that each Table row carries.
    pub include: IncludeObject,
    /// Current time, for ages in Tables.
    pub now: jiff::Timestamp,
    /// Cache of Table rows.
    pub rows: &'a Rows,
    /// Current time by a monotonic clock, which decides how long rows are cached.
    pub monotonic: Duration,
}

impl ResponseFormat<'_> {
    /// Returns an answer with one object, given in its storage form.
    pub fn object(&self, code: StatusCode, value: Value) -> Response<Body> {
        let value = match self.representation.shape {
            Shape::Object => convert::from_storage(self.target.kind, value),
            Shape::PartialMetadata => partial(&value),
            Shape::PartialMetadataList => return body::status_response(&not_acceptable()),
            Shape::Table => {
                let version = value.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
                let mut out = Vec::new();
                self.write_table_head(&mut out, &version, true);
                self.write_cells(
                    &mut out,
                    &Row::new(self.target.kind.storage.0, self.target.kind.resource, &value),
                );
                let object = match self.include {
                    IncludeObject::None => Value::Null,
                    IncludeObject::Metadata => partial(&value),
                    IncludeObject::Object => convert::from_storage(self.target.kind, value),
                };
                out.extend_from_slice(format!("{object}}}]}}").as_bytes());
                return self.encode_bytes(code, out);
            }
        };
        self.encode(code, &value)
    }

    /// Returns an answer with one stored object.
    pub fn stored(&self, object: &Object) -> Response<Body> {
        let plain = Representation { encoding: Encoding::Json, shape: Shape::Object };
        if self.representation == plain {
            let mut out = Vec::with_capacity(object.value.len() + 64);
            self.write_object(&mut out, object, object.mod_revision, false);
            return body::bytes_response(StatusCode::OK, body::JSON, out);
        }
        match object::value(object, object.mod_revision) {
            Ok(value) => self.object(StatusCode::OK, value),
            Err(status) => body::status_response(&status),
        }
    }

    /// Appends one object as JSON; `item` leaves out apiVersion and kind, as in the items of lists.
    pub fn write_object(&self, out: &mut Vec<u8>, object: &Object, revision: Revision, item: bool) {
        if convert::is_converted(self.target.kind) {
            if let Ok(value) = object::value(object, revision) {
                let mut value = convert::from_storage(self.target.kind, value);
                if let (true, Some(map)) = (item, value.as_object_mut()) {
                    map.remove("apiVersion");
                    map.remove("kind");
                }
                out.extend_from_slice(value.to_string().as_bytes());
            }
            return;
        }
        object::view(object, self.target).write_json(out, object, revision, item);
    }

    /// Appends one object as PartialObjectMetadata.
    pub fn write_partial(&self, out: &mut Vec<u8>, object: &Object, revision: Revision) {
        out.extend_from_slice(
            b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":",
        );
        object::view(object, self.target).write_metadata(out, object, revision);
        out.push(b'}');
    }

    /// Appends a Table of one object; `headers` includes the column definitions.
    pub fn write_table(&self, out: &mut Vec<u8>, object: &Object, revision: Revision, headers: bool) {
        self.write_table_head(out, &Value::from(revision.to_string()), headers);
        self.write_rest_of_row(out, object, revision);
        out.extend_from_slice(b"]}");
    }

    /// Appends the row of one object to a Table of many objects.
    pub fn write_row(&self, out: &mut Vec<u8>, object: &Object, revision: Revision) {
        out.extend_from_slice(b"{\"cells\":");
        self.write_rest_of_row(out, object, revision);
    }

    /// Appends the beginning of a Table, up to the cells of its first row.
    fn write_table_head(&self, out: &mut Vec<u8>, version: &Value, headers: bool) {
        let (group, resource) = (self.target.kind.storage.0, self.target.kind.resource);
        let columns = if headers { table::columns(group, resource) } else { Value::Null };
        let head = format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{{\"resourceVersion\":{version}}},\
             \"columnDefinitions\":{columns},\"rows\":[{{\"cells\":"
        );
        out.extend_from_slice(head.as_bytes());
    }

    fn write_cells(&self, out: &mut Vec<u8>, row: &Row) {
        row.write(out, self.now);
        out.extend_from_slice(b",\"object\":");
    }

    fn write_rest_of_row(&self, out: &mut Vec<u8>, object: &Object, revision: Revision) {
        self.write_cells(out, &object::row(object, self.target, self.rows, self.monotonic));
        match self.include {
            IncludeObject::None => out.extend_from_slice(b"null"),
            IncludeObject::Metadata => self.write_partial(out, object, revision),
            IncludeObject::Object => self.write_object(out, object, revision, false),
        }
        out.push(b'}');
    }

    /// Encodes any value in the encoding the client accepts.
    pub fn encode(&self, code: StatusCode, value: &Value) -> Response<Body> {
        encode(self.representation.encoding, code, value)
    }

    fn encode_bytes(&self, code: StatusCode, json: Vec<u8>) -> Response<Body> {
        match self.representation.encoding {
            Encoding::Json => body::bytes_response(code, body::JSON, json),
            Encoding::Yaml => match serde_json::from_slice(&json) {
                Ok(value) => self.encode(code, &value),
                Err(error) => body::status_response(&Status::internal(error)),
            },
        }
    }
}

/// Encodes any value in the given encoding.
pub fn encode(encoding: Encoding, code: StatusCode, value: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => body::json_response(code, value),
        Encoding::Yaml => {
            let kind = HeaderValue::from_static("application/yaml");
            body::bytes_response(code, kind, Bytes::from(yaml::to_string(value)))
        }
    }
}

/// Returns an object as PartialObjectMetadata.
pub fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata").cloned().unwrap_or_default(),
    })
}

fn not_acceptable() -> Status {
    Status::not_acceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"])
}
