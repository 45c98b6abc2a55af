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

/// The type of a Go value, as far as its JSON form depends on it.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A string.
    String,
    /// A bool.
    Bool,
    /// A signed or unsigned integer.
    Int {
        /// Width in bits: 8, 16, 32 or 64.
        bits: u8,
        /// Whether the integer is signed.
        signed: bool,
    },
    /// A float of 32 or 64 bits.
    Float(u8),
    /// `[]byte`, base64 in JSON.
    Bytes,
    /// `*T`: an absent value and a zero value differ.
    Pointer(Box<Type>),
    /// `[]T`.
    List(Box<Type>),
    /// `map[string]T`.
    Map(Box<Type>),
    /// A struct, by its index in the table.
    Struct(StructId),
    /// A named type other than a struct; an enumeration if it has values.
    Named {
        /// The name in the table, e.g. `core/v1.Protocol`.
        name: &'static str,
        /// The type that the name stands for.
        of: Box<Type>,
        /// The allowed values if the type is an enumeration; otherwise empty.
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

/// How server-side apply merges a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// The list is replaced as a whole.
    Atomic,
    /// The list is a set of scalars, merged by value.
    Set,
    /// The list is a map: items are merged by the key fields in [`Field::list_keys`].
    Map,
}

/// One field of a struct. Fields of embedded structs are listed as fields of the struct that embeds them.
#[derive(Clone, Debug)]
pub struct Field {
    /// The JSON name.
    pub name: &'static str,
    /// The Go type of the field.
    pub of: Type,
    /// `omitempty`: an empty value is not written.
    pub omit_empty: bool,
    /// `omitzero`: a zero struct is not written.
    pub omit_zero: bool,
    /// Whether OpenAPI lists the field as required.
    pub required: bool,
    /// The protobuf field number within [`Field::owner`].
    pub tag: u32,
    /// Go names of the embedded structs that lead to the field, outermost first; empty if the struct
    /// declares it.
    pub embedded: Vec<&'static str>,
    /// The struct that declares the field: an embedded one, or the struct itself.
    pub owner: StructId,
    /// How server-side apply merges the list; `None` if the source says nothing.
    pub list_type: Option<ListType>,
    /// Names of the key fields if `list_type` is [`ListType::Map`]; otherwise empty.
    pub list_keys: Vec<&'static str>,
    /// `granular` or `atomic` for maps and structs; `None` if the source says nothing.
    pub map_type: Option<&'static str>,
    /// The merge key of strategic merge patch; `None` if there is none.
    pub merge_key: Option<&'static str>,
    /// The patch strategies `merge`, `replace` and `retainKeys`, joined by commas; empty if there is none.
    pub patch_strategy: &'static str,
    /// The value of a `+default` marker, as JSON; `None` without a marker.
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
    /// `atomic` if server-side apply replaces the struct as a whole.
    pub map_type: Option<&'static str>,
}

impl Struct {
    /// Returns the field with this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).and_then(|i| self.fields.get(*i))
    }

    /// Returns the bare Go name, such as `Deployment`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// The table of every struct type, loaded on first use.
#[derive(Debug)]
pub struct Table {
    structs: Vec<Struct>,
    by_name: HashMap<&'static str, StructId>,
}

impl Table {
    /// Returns the table.
    pub fn get() -> &'static Table {
        load::table()
    }

    /// Returns a struct by its index.
    pub fn at(&self, id: StructId) -> &Struct {
        &self.structs[id]
    }

    /// Looks up a struct's index by its table name, such as `core/v1.PodSpec`.
    pub fn find(&self, name: &str) -> Option<StructId> {
        self.by_name.get(name).copied()
    }

    /// Returns every struct.
    pub fn structs(&self) -> &[Struct] {
        &self.structs
    }
}

/// The schema of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    id: StructId,
}

/// Returns the table's package name of an API group and version: `apps/v1`, `core/v1`, `meta/v1`.
pub fn package(group: &str, version: &str) -> String {
    let name = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{name}/{version}")
}

impl Schema {
    /// Returns the schema of a kind; `None` if the table does not have it.
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Schema> {
        let id = Table::get().find(&format!("{}.{kind}", package(group, version)))?;
        Some(Schema { id })
    }

    /// Returns the struct of the kind.
    pub fn root(self) -> &'static Struct {
        Table::get().at(self.id)
    }

    /// Returns the table index of the kind's struct.
    pub fn id(self) -> StructId {
        self.id
    }
}

/// Strips pointers and type names from a type.
pub fn bare(of: &Type) -> &Type {
    match of {
        Type::Pointer(inner) | Type::Named { of: inner, .. } => bare(inner),
        other => other,
    }
}

/// Returns the name and the values of an enumerated type, or of a pointer to one.
pub fn enumeration(of: &Type) -> Option<(&'static str, &[&'static str])> {
    match of {
        Type::Pointer(inner) => enumeration(inner),
        Type::Named { name, values, .. } if !values.is_empty() => Some((name, values)),
        _ => None,
    }
}

/// Returns the type's name as Go's error messages print it: `int32`, `v1.PodSpec`, `[]v1.Volume`.
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
