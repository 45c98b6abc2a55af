//! Field selectors: `metadata.name=x,status.phase!=Running`.

use crate::go;

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field label, such as `spec.nodeName`.
    pub field: String,
    /// The value to compare with.
    pub value: String,
    /// Whether the field must differ from the value (`!=`).
    pub negated: bool,
}

/// A set of conditions that must all hold; an empty set matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses the text form (`fieldSelector=`); the error is Kubernetes' message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        let mut terms = split_terms(text);
        terms.sort_unstable();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let Some((field, operator, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                value: unescape(value)?,
                negated: operator == "!=",
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// Makes a selector that requires one field to be equal.
    pub fn equals(field: &str, value: &str) -> Self {
        let one = FieldRequirement { field: field.into(), value: value.into(), negated: false };
        FieldSelector { requirements: vec![one] }
    }

    /// Returns the conditions, sorted by their text.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Returns whether the selector matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Returns the value that the selector requires of a field; `None` if it requires none.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| !r.negated && r.field == field).map(|r| r.value.as_str())
    }

    /// Fails with Kubernetes' message if a field is not among the supported ones. For kinds with only the
    /// two generic labels the message lists them, for kinds with labels of their own it does not, and for
    /// Jobs it differs. The version is the kind's; no message uses it today.
    pub fn check_supported(&self, kind: &str, _version: &str, supported: &[&str]) -> Result<(), String> {
        let Some(bad) = self.requirements.iter().find(|r| !supported.contains(&r.field.as_str())) else {
            return Ok(());
        };
        let generic = supported.iter().all(|s| matches!(*s, "metadata.name" | "metadata.namespace"));
        let name = go::quote(&bad.field);
        Err(if generic {
            format!("{name} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        } else if kind == "Job" {
            format!("field label {name} not supported for {kind}")
        } else {
            format!("field label not supported: {}", bad.field)
        })
    }

    /// Returns whether the fields, looked up by label, satisfy the selector; an absent field counts as
    /// empty.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| (lookup(&r.field).unwrap_or("") == r.value) != r.negated)
    }
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &'static str, &str)> {
    for (i, _) in term.char_indices() {
        for operator in ["!=", "==", "="] {
            if let Some(value) = term[i..].strip_prefix(operator) {
                return Some((&term[..i], operator, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => return Err(format!("invalid field selector: invalid escape sequence: \\{e}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {}", c as u32));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_selector_matches_all_its_terms() {
        let s = FieldSelector::parse("status.phase!=Failed,metadata.name==x").expect("parses");
        assert_eq!(s.exact("metadata.name"), Some("x"));
        assert!(s.matches(|f| (f == "metadata.name").then_some("x")));
        assert!(!s.matches(|f| Some(if f == "metadata.name" { "x" } else { "Failed" })));
    }

    #[test]
    fn bad_field_selectors_say_what_is_wrong() {
        assert_eq!(
            FieldSelector::parse("metadata.name"),
            Err("invalid selector: 'metadata.name'; can't understand 'metadata.name'".into())
        );
        assert!(FieldSelector::parse("a=b=c").is_err());
        let bogus = FieldSelector::parse("bogus=x").expect("parses");
        assert_eq!(
            bogus.check_supported("ConfigMap", "v1", &["metadata.name", "metadata.namespace"]),
            Err("\"bogus\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                .into())
        );
    }
}
