//! Parses gofmt-ed type declarations: structs with their tags, named scalars, lists and maps, string
//! constants of enumerations. Not a general Go parser: it handles the forms that Kubernetes' API packages
//! use.

use std::collections::BTreeMap;

/// A Go package.
pub struct Package {
    /// Name of the package in the schema table, e.g. `core/v1`.
    pub name: String,
    /// The package's types, by name.
    pub types: BTreeMap<String, Type>,
    /// String constants: type, name, value, comment lines.
    pub constants: Vec<Constant>,
}

/// A typed string constant.
pub struct Constant {
    /// Name of the constant's type.
    pub of: String,
    /// Go name of the constant.
    pub name: String,
    /// Value of the constant.
    pub value: String,
    /// Comment lines above the constant.
    pub comments: Vec<String>,
}

/// A declared Go type.
pub struct Type {
    /// Comment lines above the declaration.
    pub comments: Vec<String>,
    /// Whether the type is a struct or an alias of another type.
    pub shape: Shape,
}

/// Form of a declared type.
pub enum Shape {
    /// A struct with its fields in order.
    Struct(Vec<Field>),
    /// Another name for a Go type.
    Alias(String),
}

/// A field of a Go struct.
pub struct Field {
    /// Go name of the field; for an embedded field the name of its type.
    pub name: String,
    /// Whether the field is embedded.
    pub embedded: bool,
    /// Go type of the field, with the table's package names in references.
    pub of: String,
    /// The raw struct tag.
    pub tags: String,
    /// Comment lines above the field.
    pub comments: Vec<String>,
}

impl Package {
    /// Creates an empty package.
    pub fn new(name: &str) -> Self {
        Package { name: name.into(), types: BTreeMap::new(), constants: Vec::new() }
    }

    /// Adds the declarations of one source file.
    pub fn read(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        let imports = imports(&lines);
        let mut comments: Vec<String> = Vec::new();
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at];
            at += 1;
            if let Some(comment) = line.strip_prefix("//") {
                comments.push(comment.to_owned());
                continue;
            }
            if let Some(declaration) = line.strip_prefix("type ") {
                at = self.declaration(declaration, &lines, at, std::mem::take(&mut comments), &imports);
            } else if line == "const (" {
                at = self.constants(&lines, at);
            } else if let Some(one) = line.strip_prefix("const ") {
                self.constant(one, std::mem::take(&mut comments));
            }
            comments.clear();
        }
    }

    fn declaration(
        &mut self,
        declaration: &str,
        lines: &[&str],
        mut at: usize,
        comments: Vec<String>,
        imports: &BTreeMap<String, String>,
    ) -> usize {
        let Some((name, rest)) = declaration.split_once(' ') else { return at };
        let rest = rest.split("//").next().unwrap_or_default().trim();
        let shape = if rest == "struct {" {
            let mut fields = Vec::new();
            at = self.fields(lines, at, imports, &mut fields);
            Shape::Struct(fields)
        } else if rest == "struct{}" || rest == "struct {}" {
            Shape::Struct(Vec::new())
        } else if rest.starts_with("func") || rest.starts_with("interface") || rest.contains('(') {
            return at;
        } else {
            Shape::Alias(self.spell(rest.trim_start_matches("= "), imports))
        };
        self.types.insert(name.to_owned(), Type { comments, shape });
        at
    }

    fn fields(
        &self,
        lines: &[&str],
        mut at: usize,
        imports: &BTreeMap<String, String>,
        fields: &mut Vec<Field>,
    ) -> usize {
        let mut comments: Vec<String> = Vec::new();
        while at < lines.len() && lines[at] != "}" {
            let line = lines[at].trim();
            at += 1;
            if let Some(comment) = line.strip_prefix("//") {
                comments.push(comment.to_owned());
                continue;
            }
            if let Some(field) = self.field(line, imports, &mut comments) {
                fields.push(field);
            }
            comments.clear();
        }
        at + 1
    }

    fn field(
        &self,
        line: &str,
        imports: &BTreeMap<String, String>,
        comments: &mut Vec<String>,
    ) -> Option<Field> {
        let (declaration, tags) = line.split_once('`').unwrap_or((line, ""));
        let tags = tags.split('`').next().unwrap_or_default().to_owned();
        let words: Vec<&str> = declaration.split("//").next()?.split_whitespace().collect();
        let (name, of, embedded) = match words.as_slice() {
            [] => return None,
            [of] => (of.rsplit('.').next()?.trim_start_matches('*'), *of, true),
            [name, of @ ..] => {
                return Some(Field {
                    name: (*name).to_owned(),
                    embedded: false,
                    of: self.spell(&of.join(" "), imports),
                    tags,
                    comments: std::mem::take(comments),
                });
            }
        };
        let (name, of) = (name.to_owned(), self.spell(of, imports));
        Some(Field { name, embedded, of, tags, comments: std::mem::take(comments) })
    }

    fn constants(&mut self, lines: &[&str], mut at: usize) -> usize {
        let mut comments: Vec<String> = Vec::new();
        while at < lines.len() && lines[at] != ")" {
            let line = lines[at].trim();
            at += 1;
            if let Some(comment) = line.strip_prefix("//") {
                comments.push(comment.to_owned());
            } else {
                self.constant(line, std::mem::take(&mut comments));
            }
        }
        at + 1
    }

    fn constant(&mut self, line: &str, comments: Vec<String>) {
        let Some((left, right)) = line.split_once('=') else { return };
        let words: Vec<&str> = left.split_whitespace().collect();
        let Some(value) = right.trim().strip_prefix('"').and_then(|v| v.split('"').next()) else { return };
        if let [name, of] = words.as_slice() {
            let (of, name, value) = ((*of).to_owned(), (*name).to_owned(), value.to_owned());
            self.constants.push(Constant { of, name, value, comments });
        }
    }

    /// Spells a Go type with the table's package names: `*T`, `[]T`, `{}T` for maps with string keys.
    fn spell(&self, of: &str, imports: &BTreeMap<String, String>) -> String {
        let of = of.trim();
        if let Some(inner) = of.strip_prefix('*') {
            return format!("*{}", self.spell(inner, imports));
        }
        if of == "[]byte" || of == "[]uint8" {
            return "bytes".into();
        }
        if let Some(inner) = of.strip_prefix("[]") {
            return format!("[]{}", self.spell(inner, imports));
        }
        if let Some((key, value)) = of.strip_prefix("map[").and_then(|m| m.split_once(']')) {
            let key = self.spell(key, imports);
            let key = if key == "string" { String::new() } else { key };
            return format!("{{{key}}}{}", self.spell(value, imports));
        }
        if let Some((package, name)) = of.split_once('.') {
            return format!("{}.{name}", imports.get(package).map_or(package, String::as_str));
        }
        match of {
            "string" | "bool" | "int" | "int8" | "int16" | "int32" | "int64" | "uint8" | "uint16"
            | "uint32" | "uint64" | "float32" | "float64" => of.into(),
            "byte" => "uint8".into(),
            "interface{}" | "any" => "any".into(),
            name => format!("{}.{name}", self.name),
        }
    }
}

/// Maps the names by which a file imports packages to the table's names.
fn imports(lines: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in lines {
        let line = line.trim().strip_prefix("import ").unwrap_or(line.trim());
        let Some((alias, rest)) = line.split_once('"') else { continue };
        let Some(path) = rest.strip_suffix('"') else { continue };
        let name =
            super::PACKAGES.iter().find(|(module, dir, _)| path == format!("{module}/{dir}")).map_or_else(
                || path.rsplit('/').next().unwrap_or(path).to_owned(),
                |(_, _, name)| (*name).to_owned(),
            );
        let alias = match alias.trim() {
            "" => path.rsplit('/').next().unwrap_or(path),
            alias => alias,
        };
        found.insert(alias.to_owned(), name);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_aliases_and_constants_are_read() {
        let mut package = Package::new("x/v1");
        package.read(
            "package v1\n\nimport (\n\tmetav1 \"k8s.io/apimachinery/pkg/apis/meta/v1\"\n)\n\n// A kind.\n\
             // +enum\ntype Mode string\n\nconst (\n\t// On is on.\n\tOn Mode = \"On\"\n)\n\n// T is it.\n\
             type T struct {\n\tmetav1.TypeMeta `json:\",inline\"`\n\t// A field.\n\tA *map[string]Mode \
             `json:\"a\"` // tail\n}\n",
        );
        assert_eq!(package.constants[0].value, "On");
        let Some(Type { shape: Shape::Struct(fields), comments }) = package.types.get("T") else {
            panic!("T is a struct");
        };
        assert_eq!(comments[0], " T is it.");
        assert_eq!((fields[0].of.as_str(), fields[0].embedded), ("meta/v1.TypeMeta", true));
        assert_eq!(fields[1].of, "*{}x/v1.Mode");
        assert_eq!(fields[1].tags, "json:\"a\"");
    }
}
