//! Schemas of types: converts the schema table to OpenAPI, v3 (`components/schemas`) or v2 (`definitions`).

use std::collections::BTreeMap;

use proto_api::kinds;
use proto_api::schema::{self, Field, ListType, StructId, Table, Type};
use serde_json::{Map, Value, json};

/// OpenAPI version of the document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Dialect {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

/// Collects the schemas that the document refers to, with the schemas those refer to in turn.
pub(super) struct Collector {
    /// OpenAPI version of the document.
    pub(super) dialect: Dialect,
    done: BTreeMap<String, Value>,
}

/// Returns the name of a type in OpenAPI: `core/v1.Pod` -> `io.k8s.api.core.v1.Pod`.
fn definition_name(name: &str) -> String {
    let (package, of) = name.rsplit_once('.').unwrap_or(("", name));
    match package {
        "meta/v1" => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{of}"),
        "types" => format!("io.k8s.apimachinery.pkg.types.{of}"),
        other => format!("io.k8s.api.{}.{of}", other.replace('/', ".")),
    }
}

/// OpenAPI names of types that are not structs of the schema table.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const DURATION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Duration";

impl Collector {
    /// Creates an empty collector.
    pub(super) fn new(dialect: Dialect) -> Self {
        Collector { dialect, done: BTreeMap::new() }
    }

    /// Returns all collected schemas.
    pub(super) fn finish(self) -> Map<String, Value> {
        self.done.into_iter().collect()
    }

    /// Returns a reference to a kind's schema; an empty object schema for a kind the table does not have.
    pub(super) fn kind(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match Table::get().find(&format!("{}.{kind}", schema::package(group, version))) {
            Some(id) => self.reference(id),
            None => json!({"type": "object"}),
        }
    }

    /// Returns the schema of a patch's body: any object.
    pub(super) fn patch(&mut self) -> Value {
        let name = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
        let text = "A patch of an object: its type is that of the request's Content-Type.";
        self.named(name, || json!({"description": text, "type": "object"}))
    }

    fn pointer(&self, name: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn named(&mut self, name: &str, make: impl FnOnce() -> Value) -> Value {
        if !self.done.contains_key(name) {
            self.done.insert(name.to_owned(), make());
        }
        self.pointer(name)
    }

    fn reference(&mut self, id: StructId) -> Value {
        let of = Table::get().at(id);
        let name = definition_name(of.name);
        if !self.done.contains_key(&name) {
            // Registered before its fields are visited, because a field may refer back to this type.
            self.done.insert(name.clone(), Value::Null);
            let schema = self.structure(id);
            self.done.insert(name.clone(), schema);
        }
        self.pointer(&name)
    }

    fn structure(&mut self, id: StructId) -> Value {
        let of = Table::get().at(id);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &of.fields {
            properties.insert(field.name.to_owned(), self.property(field));
            if field.required {
                required.push(field.name);
            }
        }
        let mut out = json!({"type": "object"});
        if let Some(text) = schema::description(of.name, "") {
            out["description"] = json!(text);
        }
        if !properties.is_empty() {
            out["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if let Some(map_type) = of.map_type {
            out["x-kubernetes-map-type"] = json!(map_type);
        }
        let gvks = group_version_kinds(of.name);
        if !gvks.is_empty() {
            out["x-kubernetes-group-version-kind"] = Value::Array(gvks);
        }
        out
    }

    fn property(&mut self, field: &Field) -> Value {
        let schema = self.of(&field.of);
        let mut extra = Map::new();
        let owner = Table::get().at(field.owner).name;
        let values = schema::enumeration(&field.of).and_then(|(name, _)| schema::description(name, ""));
        let text = match (schema::description(owner, field.name), values) {
            (Some(text), Some(values)) => Some(format!("{text}\n\n{values}")),
            (text, values) => text.or(values).map(str::to_owned),
        };
        if let Some(text) = text {
            extra.insert("description".into(), json!(text));
        }
        if let Some(default) = default_of(field) {
            extra.insert("default".into(), default);
        }
        if let Some((_, values)) = schema::enumeration(&field.of) {
            extra.insert("enum".into(), json!(values));
        }
        let list = field.list_type.map(|l| match l {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        });
        if let Some(list) = list {
            extra.insert("x-kubernetes-list-type".into(), json!(list));
        }
        if !field.list_keys.is_empty() {
            extra.insert("x-kubernetes-list-map-keys".into(), json!(field.list_keys));
        }
        if let Some(map_type) = field.map_type {
            extra.insert("x-kubernetes-map-type".into(), json!(map_type));
        }
        if let Some(key) = field.merge_key {
            extra.insert("x-kubernetes-patch-merge-key".into(), json!(key));
        }
        if !field.patch_strategy.is_empty() {
            extra.insert("x-kubernetes-patch-strategy".into(), json!(field.patch_strategy));
        }
        self.with(schema, extra)
    }

    /// Adds members to a schema; OpenAPI 3.0 needs an `allOf` around a reference that has members beside it.
    fn with(&self, schema: Value, extra: Map<String, Value>) -> Value {
        let mut out = match (&schema, self.dialect) {
            (Value::Object(members), Dialect::V3) if members.contains_key("$ref") && !extra.is_empty() => {
                json!({"allOf": [schema]})
            }
            _ => schema,
        };
        if let Some(members) = out.as_object_mut() {
            members.extend(extra);
        }
        out
    }

    /// Returns the schema of an item of a list or map, whose default is its zero value.
    fn item(&mut self, of: &Type) -> Value {
        let schema = self.of(of);
        let mut extra = Map::new();
        if let Some(zero) = zero(of) {
            extra.insert("default".into(), zero);
        }
        self.with(schema, extra)
    }

    fn of(&mut self, of: &Type) -> Value {
        match of {
            Type::Pointer(inner) | Type::Named { of: inner, .. } => self.of(inner),
            Type::String => json!({"type": "string"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int { bits: 64, .. } => json!({"type": "integer", "format": "int64"}),
            Type::Int { .. } => json!({"type": "integer", "format": "int32"}),
            Type::Float(_) => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::List(inner) => json!({"type": "array", "items": self.item(inner)}),
            Type::Map(inner) => json!({"type": "object", "additionalProperties": self.item(inner)}),
            Type::Struct(id) => self.reference(*id),
            Type::Time => self.text(TIME, "A time, RFC 3339, in whole seconds.", "date-time"),
            Type::MicroTime => self.text(MICRO_TIME, "A time, RFC 3339, in microseconds.", "date-time"),
            Type::Duration => self.text(DURATION, "A duration such as 1h30m.", ""),
            Type::Quantity => {
                let text =
                    "An amount: a decimal number with a suffix such as m, k, M, Ki, Mi, or an exponent.";
                self.either(QUANTITY, text, json!([{"type": "string"}, {"type": "number"}]), None)
            }
            Type::IntOrString => {
                let text = "A whole number of 32 bits, or a string.";
                let kinds = json!([{"type": "integer"}, {"type": "string"}]);
                self.either(INT_OR_STRING, text, kinds, Some("int-or-string"))
            }
            Type::Any => {
                self.named(RAW, || json!({"description": "Any object of any API.", "type": "object"}))
            }
        }
    }

    fn text(&mut self, name: &str, text: &str, format: &str) -> Value {
        self.named(name, || {
            let mut out = json!({"description": text, "type": "string"});
            if !format.is_empty() {
                out["format"] = json!(format);
            }
            out
        })
    }

    /// Returns the schema of a value of one of several types; Swagger 2.0 can express only the string.
    fn either(&mut self, name: &str, text: &str, kinds: Value, format: Option<&str>) -> Value {
        let dialect = self.dialect;
        self.named(name, || {
            let mut out = json!({"description": text});
            match dialect {
                Dialect::V2 => out["type"] = json!("string"),
                Dialect::V3 => out["oneOf"] = kinds,
            }
            if let Some(format) = format {
                out["format"] = json!(format);
            }
            out
        })
    }
}

/// Returns the default of a field: the marker's, or the zero value where the field is always present.
fn default_of(field: &Field) -> Option<Value> {
    if let Some(json) = field.default {
        return serde_json::from_str(json).ok();
    }
    match schema::bare(&field.of) {
        Type::Struct(_) if !matches!(field.of, Type::Pointer(_)) && !field.omit_zero => Some(json!({})),
        _ if field.omit_empty => None,
        _ => zero(&field.of).filter(|_| !matches!(field.of, Type::Struct(_))),
    }
}

/// Returns the zero value of a type that always has one.
fn zero(of: &Type) -> Option<Value> {
    match of {
        Type::Named { of: inner, .. } => zero(inner),
        Type::String => Some(json!("")),
        Type::Bool => Some(json!(false)),
        Type::Int { .. } | Type::Float(_) => Some(json!(0)),
        Type::Struct(_) => Some(json!({})),
        _ => None,
    }
}

/// Returns the group, version and kind of a type that is an object or a list of objects.
fn group_version_kinds(name: &str) -> Vec<Value> {
    let (package, kind) = name.rsplit_once('.').unwrap_or(("", name));
    let is = |k: &kinds::Kind| {
        schema::package(k.gvk.group, k.gvk.version) == package
            && (k.gvk.kind == kind || k.list_kind() == kind)
    };
    if let Some(found) = kinds::KINDS.iter().find(|k| is(k)) {
        return vec![json!({"group": found.gvk.group, "version": found.gvk.version, "kind": kind})];
    }
    let other =
        kinds::OTHER_KINDS.iter().find(|g| schema::package(g.group, g.version) == package && g.kind == kind);
    match other {
        // Options and Status are listed under every group.
        Some(gvk) if gvk.group == "meta.k8s.io" => {
            let groups = kinds::groups();
            let each = |(group, versions): &(&str, Vec<&str>)| {
                let list: Vec<Value> =
                    versions.iter().map(|v| json!({"group": group, "version": v, "kind": kind})).collect();
                list
            };
            groups.iter().flat_map(each).collect()
        }
        Some(gvk) => vec![json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})],
        None => Vec::new(),
    }
}
