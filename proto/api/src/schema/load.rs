//! Reads `table.txt` into a [`Table`]. `cargo xtask schema` makes the file, and it is compiled in: a line
//! that does not parse cannot come from a client and would be found by a test, so such lines are skipped.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Field, ListType, Struct, StructId, Table, Type};

static TEXT: &str = include_str!("table.txt");

pub(super) fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(load);
    &TABLE
}

/// One `=` line with the lines that belong to it.
struct Raw {
    head: &'static str,
    lines: Vec<&'static str>,
}

struct Loader {
    ids: HashMap<&'static str, StructId>,
    names: HashMap<&'static str, (&'static str, Vec<&'static str>)>,
}

fn load() -> Table {
    let mut raws: Vec<(&'static str, Raw)> = Vec::new();
    let mut loader = Loader { ids: HashMap::new(), names: HashMap::new() };
    for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
        if let Some(head) = line.strip_prefix("= ") {
            let name = head.split(' ').next().unwrap_or_default();
            if let Some((_, of)) = head.split_once(" : ") {
                let (of, extra) = of.split_once(' ').unwrap_or((of, ""));
                let values = extra
                    .strip_prefix("enum=")
                    .map(|v| v.split(',').map(unquoted).collect())
                    .unwrap_or_default();
                loader.names.insert(name, (of, values));
            } else {
                loader.ids.insert(name, raws.len());
                raws.push((name, Raw { head, lines: Vec::new() }));
            }
        } else if let Some((_, raw)) = raws.last_mut() {
            raw.lines.push(line);
        }
    }
    let mut structs = Vec::with_capacity(raws.len());
    for (id, (name, raw)) in raws.iter().enumerate() {
        let mut fields = Vec::new();
        loader.fields(&raws, id, &mut Vec::new(), &mut fields);
        let by_name = fields.iter().enumerate().map(|(i, f)| (f.name, i)).collect();
        let map_type = raw.head.split(' ').find_map(|w| w.strip_prefix("struct=").or(w.strip_prefix("map=")));
        let embedded = loader.embedded(&raw.lines);
        structs.push(Struct { name, fields, by_name, embedded, map_type });
    }
    Table { structs, by_name: loader.ids }
}

impl Loader {
    /// Returns the fields of a struct, with the fields of embedded structs in their place.
    fn fields(
        &self,
        raws: &[(&'static str, Raw)],
        id: StructId,
        embedded: &mut Vec<&'static str>,
        out: &mut Vec<Field>,
    ) {
        for line in &raws[id].1.lines {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some(">"), Some(name), Some(of), _) => {
                    if let Some(inner) = self.ids.get(of.trim_start_matches('*')) {
                        embedded.push(name);
                        self.fields(raws, *inner, embedded, out);
                        embedded.pop();
                    }
                }
                (Some(name), Some(of), Some(flags), Some(tag)) => {
                    let mut field = Field {
                        name,
                        of: self.parse(of),
                        omit_empty: flags.contains('e'),
                        omit_zero: flags.contains('z'),
                        required: flags.contains('r'),
                        tag: tag.parse().unwrap_or(0),
                        embedded: embedded.clone(),
                        owner: id,
                        list_type: None,
                        list_keys: Vec::new(),
                        map_type: None,
                        merge_key: None,
                        patch_strategy: "",
                        default: None,
                    };
                    for word in words {
                        set_extra(&mut field, word);
                    }
                    out.push(field);
                }
                _ => {}
            }
        }
    }

    /// Returns the embedded structs of a struct that have a protobuf field number.
    fn embedded(&self, lines: &[&'static str]) -> Vec<(u32, StructId)> {
        let numbered = |line: &&'static str| {
            let mut words = line.strip_prefix("> ")?.split(' ').skip(1);
            let (of, tag) = (words.next()?, words.next()?);
            Some((tag.parse().ok()?, *self.ids.get(of.trim_start_matches('*'))?))
        };
        lines.iter().filter_map(numbered).collect()
    }

    fn parse(&self, of: &'static str) -> Type {
        if let Some(inner) = of.strip_prefix('*') {
            return Type::Pointer(Box::new(self.parse(inner)));
        }
        if let Some(inner) = of.strip_prefix("[]") {
            return Type::List(Box::new(self.parse(inner)));
        }
        if let Some((_, inner)) = of.strip_prefix('{').and_then(|m| m.split_once('}')) {
            return Type::Map(Box::new(self.parse(inner)));
        }
        match of {
            "string" => Type::String,
            "bool" => Type::Bool,
            "int" | "int64" => Type::Int { bits: 64, signed: true },
            "int32" => Type::Int { bits: 32, signed: true },
            "int16" => Type::Int { bits: 16, signed: true },
            "int8" => Type::Int { bits: 8, signed: true },
            "uint64" => Type::Int { bits: 64, signed: false },
            "uint32" => Type::Int { bits: 32, signed: false },
            "uint8" => Type::Int { bits: 8, signed: false },
            "float32" => Type::Float(32),
            "float64" => Type::Float(64),
            "bytes" => Type::Bytes,
            "meta/v1.Time" => Type::Time,
            "meta/v1.MicroTime" => Type::MicroTime,
            "meta/v1.Duration" => Type::Duration,
            "resource.Quantity" => Type::Quantity,
            "intstr.IntOrString" => Type::IntOrString,
            "meta/v1.FieldsV1" | "runtime.RawExtension" | "runtime.Object" | "any" => Type::Any,
            name => match (self.ids.get(name), self.names.get(name)) {
                (Some(id), _) => Type::Struct(*id),
                (None, Some((of, values))) => {
                    Type::Named { name, of: Box::new(self.parse(of)), values: values.clone() }
                }
                (None, None) => Type::Any,
            },
        }
    }
}

/// Removes the two quotes as which an enumeration's empty value is written.
fn unquoted(value: &'static str) -> &'static str {
    if value == "\"\"" { "" } else { value }
}

fn set_extra(field: &mut Field, word: &'static str) {
    match word.split_once('=') {
        Some(("list", "map")) => field.list_type = Some(ListType::Map),
        Some(("list", "set")) => field.list_type = Some(ListType::Set),
        Some(("list", _)) => field.list_type = Some(ListType::Atomic),
        Some(("keys", keys)) => field.list_keys = keys.split(',').collect(),
        Some(("map" | "struct", of)) => field.map_type = Some(of),
        Some(("merge", key)) => field.merge_key = Some(key),
        Some(("patch", strategy)) => field.patch_strategy = strategy,
        Some(("default", json)) => field.default = Some(json),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        let known = ["= ", "> ", "#"];
        for line in TEXT.lines().filter(|l| !known.iter().any(|k| l.starts_with(k))) {
            assert!(line.split(' ').count() >= 4, "{line}");
        }
        let table = table();
        assert!(table.structs().len() > 500, "{}", table.structs().len());
    }

    #[test]
    fn only_raw_types_are_untyped() {
        let allowed = ["RawExtension", "FieldsV1", "Object", "Internal", "WatchEvent", "JSON", "ListMeta"];
        for of in table().structs() {
            for field in &of.fields {
                if super::super::bare(&field.of) == &Type::Any {
                    let line = TEXT.lines().find(|l| l.starts_with(&format!("{} ", field.name)));
                    let raw = TEXT.lines().any(|l| {
                        l.starts_with(&format!("{} ", field.name)) && allowed.iter().any(|a| l.contains(a))
                    });
                    assert!(raw, "{}.{}: {line:?}", of.name, field.name);
                }
            }
        }
    }
}
