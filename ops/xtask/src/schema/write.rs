//! Writes the schema table and the descriptions, both line-oriented so that the diff for a new Kubernetes
//! release is readable. The format is described at the top of the table and parsed by `proto_api::schema`.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::Result;

use super::go::{Field, Package, Shape, Type};
use super::tags::{description, markers, struct_tag};

const HEADER: &str = "\
# = PACKAGE.TYPE [KEY=VALUE ...]              a struct; its fields follow
# = PACKAGE.TYPE : TYPE [KEY=VALUE ...]       a named scalar, list or map
# > GO-NAME TYPE [TAG]                        an embedded struct; its protobuf field number
# NAME TYPE FLAGS TAG [KEY=VALUE ...]         a field: JSON name, Go type (*pointer, []list, {}map), flags
#   e omitempty, z omitzero, r required, - none; protobuf field number;
#   list=, keys=, map=, struct= list and map types, merge= and patch= strategic merge, default= JSON
";

/// Renders the table: the structure of every type.
pub fn table(packages: &[Package], version: &str) -> Result<String> {
    let mut out =
        format!("# Kubernetes API types {version}; made by `cargo xtask schema`, do not edit.\n{HEADER}");
    for package in packages {
        for (name, of) in &package.types {
            if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
                continue;
            }
            match &of.shape {
                Shape::Alias(target) => {
                    let values = enumeration(package, name, of);
                    write!(out, "= {}.{name} : {target}", package.name)?;
                    if !values.is_empty() {
                        write!(out, " enum={}", values.join(","))?;
                    }
                    out.push('\n');
                }
                Shape::Struct(fields) if is_api(fields) => {
                    write!(out, "= {}.{name}", package.name)?;
                    push_marker(&mut out, &of.comments, "structType", "struct")?;
                    push_marker(&mut out, &of.comments, "mapType", "map")?;
                    out.push('\n');
                    for field in fields {
                        write_field(&mut out, field)?;
                    }
                }
                Shape::Struct(_) => {}
            }
        }
    }
    Ok(out)
}

/// Whether a struct belongs to the API: its fields have JSON or inline tags, those of helpers have none.
fn is_api(fields: &[Field]) -> bool {
    fields.is_empty() || fields.iter().any(|f| struct_tag(&f.tags, "json").is_some())
}

/// Returns the values of a type marked `+enum`, sorted; empty for other types.
fn enumeration(package: &Package, name: &str, of: &Type) -> Vec<String> {
    if markers(&of.comments, "enum").is_empty() {
        return Vec::new();
    }
    let values: BTreeSet<&str> =
        package.constants.iter().filter(|c| c.of == name).map(|c| c.value.as_str()).collect();
    values.into_iter().map(|v| if v.is_empty() { "\"\"".to_owned() } else { v.to_owned() }).collect()
}

fn push_marker(out: &mut String, comments: &[String], marker: &str, key: &str) -> Result<()> {
    if let Some(value) = markers(comments, marker).first() {
        write!(out, " {key}={value}")?;
    }
    Ok(())
}

fn write_field(out: &mut String, field: &Field) -> Result<()> {
    let json = struct_tag(&field.tags, "json").unwrap_or_default();
    let mut options = json.split(',');
    let name = options.next().unwrap_or_default();
    let options: Vec<&str> = options.collect();
    if field.embedded && (name.is_empty() || options.contains(&"inline")) {
        write!(out, "> {} {}", field.name, field.of)?;
        if let Some(tag) = protobuf_tag(field) {
            write!(out, " {tag}")?;
        }
        out.push('\n');
        return Ok(());
    }
    if name == "-" || name.is_empty() {
        return Ok(());
    }
    let mut flags = String::new();
    if options.contains(&"omitempty") {
        flags.push('e');
    }
    if options.contains(&"omitzero") {
        flags.push('z');
    }
    let marked = |name| !markers(&field.comments, name).is_empty();
    if marked("required") || (!json.contains("omitempty") && !marked("optional")) {
        flags.push('r');
    }
    if flags.is_empty() {
        flags.push('-');
    }
    let tag = protobuf_tag(field).unwrap_or("0");
    write!(out, "{name} {} {flags} {tag}", field.of)?;
    push_marker(out, &field.comments, "listType", "list")?;
    let keys = markers(&field.comments, "listMapKey");
    if !keys.is_empty() {
        write!(out, " keys={}", keys.join(","))?;
    }
    push_marker(out, &field.comments, "mapType", "map")?;
    push_marker(out, &field.comments, "structType", "struct")?;
    for (key, tag) in [("merge", "patchMergeKey"), ("patch", "patchStrategy")] {
        if let Some(value) = struct_tag(&field.tags, tag) {
            write!(out, " {key}={value}")?;
        }
    }
    if let Some(value) = markers(&field.comments, "default").first().filter(|v| !v.contains("ref(")) {
        write!(out, " default={}", value.replace(' ', ""))?;
    }
    out.push('\n');
    Ok(())
}

/// Returns the protobuf field number.
fn protobuf_tag(field: &Field) -> Option<&str> {
    struct_tag(&field.tags, "protobuf").and_then(|p| p.split(',').nth(1))
}

/// Renders the descriptions: `= TYPE TAB text`, then `NAME TAB text` for each field, newlines as `\n`.
pub fn docs(packages: &[Package]) -> String {
    let mut out =
        String::from("# Descriptions of Kubernetes API types; made by `cargo xtask schema`, do not edit.\n");
    let mut line = |left: &str, text: &str| {
        if !text.is_empty() || left.starts_with('=') {
            let text = text.replace('\\', "\\\\").replace('\n', "\\n");
            out.push_str(&format!("{left}\t{text}\n"));
        }
    };
    for package in packages {
        for (name, of) in &package.types {
            let public = name.starts_with(|c: char| c.is_ascii_uppercase());
            match &of.shape {
                Shape::Struct(fields) if public && is_api(fields) => {
                    line(&format!("= {}.{name}", package.name), &description(&of.comments));
                    for field in fields {
                        let json = struct_tag(&field.tags, "json").unwrap_or_default();
                        let json = json.split(',').next().unwrap_or_default();
                        if !json.is_empty() && json != "-" {
                            line(json, &description(&field.comments));
                        }
                    }
                }
                Shape::Alias(_) if public && !markers(&of.comments, "enum").is_empty() => {
                    line(&format!("= {}.{name}", package.name), &possible_values(package, name));
                }
                _ => {}
            }
        }
    }
    out
}

/// Renders the list of values that openapi-gen appends to the description of a field of an enumerated type.
fn possible_values(package: &Package, name: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for constant in package.constants.iter().filter(|c| c.of == name) {
        let text = description(&constant.comments).replace('\n', " ");
        let text = text.strip_prefix(&constant.name).map_or(text.as_str(), str::trim_start).to_owned();
        let bullet = if text.is_empty() {
            format!(" - `\"{}\"`", constant.value)
        } else {
            format!(" - `\"{}\"` {text}", constant.value)
        };
        if !lines.contains(&bullet) {
            lines.push(bullet);
        }
    }
    lines.sort();
    if lines.is_empty() { String::new() } else { format!("Possible enum values:\n{}", lines.join("\n")) }
}
