//! Answers made of objects: JSON or YAML, whole, as a Table or as metadata alone. Handlers and watches call
//! it; what a client accepts was settled by `negotiate.rs`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use proto_api::status::Status;
use serde_json::{Value, json};
use storage::{Object, Revision};

use crate::body::{self, Body};
use crate::negotiate::{Encoding, Representation, Shape};
use crate::registry::list::ListPage;
use crate::registry::{Target, convert, object};
use crate::table;

/// How much of an object a Table row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, the default.
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Parses the query parameter.
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

/// How objects are shown to one client.
#[derive(Clone, Copy)]
pub struct Format<'a> {
    /// What they are.
    pub target: Target<'a>,
    /// What is accepted.
    pub representation: Representation,
    /// What Table rows carry.
    pub include: IncludeObject,
    /// Now, for ages in Tables.
    pub now: jiff::Timestamp,
}

impl Format<'_> {
    /// An answer with one object, given in its storage form.
    pub fn object(&self, code: StatusCode, value: Value) -> Response<Body> {
        let value = match self.representation.shape {
            Shape::Object => convert::from_storage(self.target.kind, value),
            Shape::PartialMetadata => partial(&value),
            Shape::PartialMetadataList => return body::status_response(&not_acceptable()),
            Shape::Table => {
                let meta = json!({"resourceVersion": value.pointer("/metadata/resourceVersion")});
                self.table(meta, &[value], true)
            }
        };
        self.encode(code, &value)
    }

    /// An answer with one stored object.
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

    /// An answer with a page of a list.
    pub fn list(&self, page: &ListPage) -> Response<Body> {
        let mut meta = json!({"resourceVersion": page.revision.to_string()});
        if !page.continue_token.is_empty() {
            meta["continue"] = Value::from(page.continue_token.as_str());
            if let Some(remaining) = page.remaining {
                meta["remainingItemCount"] = Value::from(remaining);
            }
        }
        match self.representation.shape {
            Shape::Object => self.plain_list(page, &meta),
            Shape::PartialMetadata => body::status_response(&not_acceptable()),
            Shape::PartialMetadataList => self.metadata_list(page, &meta),
            Shape::Table => {
                let values: Vec<Value> =
                    page.objects.iter().filter_map(|o| object::value(o, o.mod_revision).ok()).collect();
                self.encode(StatusCode::OK, &self.table(meta, &values, true))
            }
        }
    }

    fn plain_list(&self, page: &ListPage, meta: &Value) -> Response<Body> {
        let kind = self.target.kind;
        let size: usize = page.objects.iter().map(|o| o.value.len() + 40).sum();
        let mut out = Vec::with_capacity(size + 256);
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
            kind.list_kind(),
            kind.api_version()
        );
        out.extend_from_slice(head.as_bytes());
        for (i, object) in page.objects.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            self.write_object(&mut out, object, object.mod_revision, true);
        }
        out.extend_from_slice(b"]}");
        self.encode_bytes(out)
    }

    fn metadata_list(&self, page: &ListPage, meta: &Value) -> Response<Body> {
        let mut out = Vec::new();
        let head = format!(
            "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{meta},\"items\":["
        );
        out.extend_from_slice(head.as_bytes());
        for (i, object) in page.objects.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            self.write_partial(&mut out, object, object.mod_revision);
        }
        out.extend_from_slice(b"]}");
        self.encode_bytes(out)
    }

    /// Appends one object as JSON; `item` leaves apiVersion and kind out.
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

    /// A Table of objects, given in their storage form; `headers` includes the column definitions.
    pub fn table(&self, meta: Value, values: &[Value], headers: bool) -> Value {
        let (group, resource) = (self.target.kind.storage.0, self.target.kind.resource);
        let refs: Vec<&Value> = values.iter().collect();
        let cells = table::table_for(group, resource, &refs, self.now);
        let rows: Vec<Value> = cells
            .into_iter()
            .zip(values)
            .map(|(cells, value)| {
                let object = match self.include {
                    IncludeObject::None => Value::Null,
                    IncludeObject::Metadata => partial(value),
                    IncludeObject::Object => convert::from_storage(self.target.kind, value.clone()),
                };
                json!({"cells": cells, "object": object})
            })
            .collect();
        let columns = if headers { table::columns(group, resource) } else { Value::Null };
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
            "columnDefinitions": columns, "rows": rows,
        })
    }

    /// Encodes any value as the client wants it.
    pub fn encode(&self, code: StatusCode, value: &Value) -> Response<Body> {
        encode(self.representation.encoding, code, value)
    }

    fn encode_bytes(&self, json: Vec<u8>) -> Response<Body> {
        match self.representation.encoding {
            Encoding::Json => body::bytes_response(StatusCode::OK, body::JSON, json),
            Encoding::Yaml => match serde_json::from_slice(&json) {
                Ok(value) => self.encode(StatusCode::OK, &value),
                Err(error) => body::status_response(&Status::internal(error)),
            },
        }
    }
}

/// Encodes any value.
pub fn encode(encoding: Encoding, code: StatusCode, value: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => body::json_response(code, value),
        Encoding::Yaml => match serde_norway::to_string(value) {
            Ok(text) => {
                let kind = HeaderValue::from_static("application/yaml");
                body::bytes_response(code, kind, Bytes::from(text))
            }
            Err(error) => body::status_response(&Status::internal(error)),
        },
    }
}

/// An object as PartialObjectMetadata.
pub fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata").cloned().unwrap_or_default(),
    })
}

fn not_acceptable() -> Status {
    Status::not_acceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"])
}
