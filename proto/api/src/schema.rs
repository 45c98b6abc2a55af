//! The schema table: every type of the Kubernetes API as `cargo xtask schema` found it in Kubernetes' source.
//! It drives decoding and field validation (`decode`), the form objects are stored and sent in (`encode`),
//! strategic merge (`crate::patch`) and OpenAPI (the API server).

mod decode;
mod defaults;
mod docs;
mod encode;
mod load;
pub mod time;

use std::collections::HashMap;

pub use decode::{Decoded, decode, decode_type};
pub use defaults::apply_defaults;
pub use docs::description;
pub use encode::{encode, encode_type, zero};

/// Index of a struct in the table.
pub type StructId = usize;

/// A Go type, as far as JSON cares.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A string.
    String,
    /// A bool.
    Bool,
    /// A signed or unsigned integer of so many bits.
    Int {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// Whether it is signed.
        signed: bool,
    },
    /// A float of 32 or 64 bits.
    Float(u8),
    /// `[]byte`, base64 in JSON.
    Bytes,
    /// `*T`: absent and zero differ.
    Pointer(Box<Type>),
    /// `[]T`.
    List(Box<Type>),
    /// `map[string]T`.
    Map(Box<Type>),
    /// A struct.
    Struct(StructId),
    /// Another name for a type, with the values of an enumeration.
    Named {
        /// The name in the table, e.g. `core/v1.Protocol`.
        name: &'static str,
        /// What it is.
        of: Box<Type>,
        /// The values, if it is an enumeration.
        values: Vec<&'static str>,
    },
    /// `metav1.Time`, RFC 3339 in whole seconds.
    Time,
    /// `metav1.MicroTime`, RFC 3339 in microseconds.
    MicroTime,
    /// `metav1.Duration`, e.g. `5m0s`.
    Duration,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `runtime.RawExtension`, `metav1.FieldsV1` and the like: any JSON.
    Any,
}

/// How a list merges in server-side apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// A map with key fields.
    Map,
}

/// One field of a struct, embedded structs flattened.
#[derive(Clone, Debug)]
pub struct Field {
    /// The JSON name.
    pub name: &'static str,
    /// The type.
    pub of: Type,
    /// `omitempty`: zero is not written.
    pub omit_empty: bool,
    /// `omitzero`: a zero struct is not written.
    pub omit_zero: bool,
    /// Required in OpenAPI.
    pub required: bool,
    /// The protobuf field number (of the struct that declares it).
    pub tag: u32,
    /// Go names of the embedded structs on the way to it, outermost first.
    pub embedded: Vec<&'static str>,
    /// The struct that declares it (an embedded one, or the struct itself).
    pub owner: StructId,
    /// The list type.
    pub list_type: Option<ListType>,
    /// The keys of a list of type map.
    pub list_keys: Vec<&'static str>,
    /// `granular` or `atomic` for maps and structs.
    pub map_type: Option<&'static str>,
    /// The merge key of strategic merge patch.
    pub merge_key: Option<&'static str>,
    /// `merge`, `replace`, `retainKeys`, joined by commas.
    pub patch_strategy: &'static str,
    /// A `+default` marker, as JSON.
    pub default: Option<&'static str>,
}

/// A struct type.
#[derive(Clone, Debug)]
pub struct Struct {
    /// The name in the table, e.g. `apps/v1.Deployment`.
    pub name: &'static str,
    /// Its fields in declaration order.
    pub fields: Vec<Field>,
    by_name: HashMap<&'static str, usize>,
    /// The embedded structs that are messages of their own in protobuf, with their field numbers.
    pub embedded: Vec<(u32, StructId)>,
    /// `atomic` if apply replaces it whole.
    pub map_type: Option<&'static str>,
}

impl Struct {
    /// The field with a JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).and_then(|i| self.fields.get(*i))
    }

    /// The bare Go name: `Deployment`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// Every struct type, loaded on first use.
#[derive(Debug)]
pub struct Table {
    structs: Vec<Struct>,
    by_name: HashMap<&'static str, StructId>,
}

impl Table {
    /// The table.
    pub fn get() -> &'static Table {
        load::table()
    }

    /// A struct by its index.
    pub fn at(&self, id: StructId) -> &Struct {
        &self.structs[id]
    }

    /// A struct by its table name, e.g. `core/v1.PodSpec`.
    pub fn find(&self, name: &str) -> Option<StructId> {
        self.by_name.get(name).copied()
    }

    /// Every struct.
    pub fn structs(&self) -> &[Struct] {
        &self.structs
    }
}

/// The schema of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    id: StructId,
}

/// The table's package of an API group and version: `apps/v1`, `core/v1`, `meta/v1`.
pub fn package(group: &str, version: &str) -> String {
    let name = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{name}/{version}")
}

impl Schema {
    /// The schema of a kind, if the table has it.
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Schema> {
        let id = Table::get().find(&format!("{}.{kind}", package(group, version)))?;
        Some(Schema { id })
    }

    /// Its struct.
    pub fn root(self) -> &'static Struct {
        Table::get().at(self.id)
    }

    /// The index of its struct.
    pub fn id(self) -> StructId {
        self.id
    }
}

/// A type without pointers and other names around it.
pub fn bare(of: &Type) -> &Type {
    match of {
        Type::Pointer(inner) | Type::Named { of: inner, .. } => bare(inner),
        other => other,
    }
}

/// The name and the values of an enumerated type, through pointers.
pub fn enumeration(of: &Type) -> Option<(&'static str, &[&'static str])> {
    match of {
        Type::Pointer(inner) => enumeration(inner),
        Type::Named { name, values, .. } if !values.is_empty() => Some((name, values)),
        _ => None,
    }
}

/// The name Go's error messages use: `int32`, `v1.PodSpec`, `[]v1.Volume`, `map[string]string`.
pub fn go_type(of: &Type) -> String {
    let short = |name: &str| match name.split_once('/') {
        Some((_, rest)) => rest.to_owned(),
        None => name.to_owned(),
    };
    match of {
        Type::String => "string".into(),
        Type::Bool => "bool".into(),
        Type::Int { bits, signed: true } => format!("int{bits}"),
        Type::Int { bits, signed: false } => format!("uint{bits}"),
        Type::Float(bits) => format!("float{bits}"),
        Type::Bytes => "[]uint8".into(),
        Type::Pointer(inner) => format!("*{}", go_type(inner)),
        Type::List(inner) => format!("[]{}", go_type(inner)),
        Type::Map(inner) => format!("map[string]{}", go_type(inner)),
        Type::Struct(id) => short(Table::get().at(*id).name),
        Type::Named { name, .. } => short(name),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Duration => "v1.Duration".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Any => "interface {}".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_kind_row_resolves_in_the_table() {
        for kind in kinds::KINDS {
            let gvk = kind.gvk;
            assert!(Schema::of(gvk.group, gvk.version, gvk.kind).is_some(), "{gvk:?}");
            for sub in kind.subresources {
                let body = sub.body;
                assert!(Schema::of(body.group, body.version, body.kind).is_some(), "{} of {gvk:?}", sub.name);
            }
        }
        for gvk in kinds::OTHER_KINDS {
            assert!(Schema::of(gvk.group, gvk.version, gvk.kind).is_some(), "{gvk:?}");
        }
    }

    #[test]
    fn merge_keys_and_list_types_are_there() {
        let table = Table::get();
        let container = table.at(table.find("core/v1.Container").expect("in the table"));
        let ports = container.field("ports").expect("a field");
        assert_eq!(ports.merge_key, Some("containerPort"));
        assert_eq!(ports.list_type, Some(ListType::Map));
        assert_eq!(ports.list_keys, ["containerPort", "protocol"]);
        let volume = table.at(table.find("core/v1.Volume").expect("in the table"));
        assert_eq!(volume.field("configMap").expect("flattened").embedded, ["VolumeSource"]);
    }

    #[test]
    fn types_print_as_go_prints_them() {
        let deployment = Schema::of("apps", "v1", "Deployment").expect("in the table").root();
        assert_eq!(go_type(&deployment.field("spec").expect("a field").of), "v1.DeploymentSpec");
        let config_map = Schema::of("", "v1", "ConfigMap").expect("in the table").root();
        assert_eq!(go_type(&config_map.field("binaryData").expect("a field").of), "map[string][]uint8");
    }
}
