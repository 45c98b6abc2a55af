//! Field paths and field errors, as `k8s.io/apimachinery/pkg/util/validation/field` has them: every
//! validation collects them in an [`ErrorList`], which becomes a 422 [`crate::Status`].

use std::fmt;

use serde_json::Value;

use crate::go;

/// The path of a field in an object: `spec.containers[0].env[0].name`, `metadata.labels[key]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// Makes the root element of a path, such as `Path::new("spec")`.
    pub fn new(name: impl Into<String>) -> Self {
        Path(name.into())
    }

    /// Makes a path without a root: its first child becomes the root.
    pub fn root() -> Self {
        Path(String::new())
    }

    /// Makes the path `<nil>`, which errors without a field have in Go.
    pub fn nil() -> Self {
        Path("<nil>".into())
    }

    /// Returns the path of a child: `a` -> `a.name`.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path(name.into()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// Returns the path of a list item: `a` -> `a[3]`.
    pub fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    /// Returns the path of a map entry: `a` -> `a[key]`.
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }

    /// Returns the printed path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of field errors; their cause reasons are Kubernetes' `FieldValue...` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The object that a reference names does not exist.
    NotFound,
    /// A needed value is absent.
    Required,
    /// A value that must be unique occurs twice.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// A value outside an enumeration.
    NotSupported,
    /// A value that may not be set here.
    Forbidden,
    /// A value longer than allowed.
    TooLong,
    /// A list longer than allowed.
    TooMany,
    /// The server could not validate the value.
    Internal,
    /// A value of the wrong type.
    TypeInvalid,
}

impl ErrorKind {
    /// Returns the machine-readable reason for a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One field error.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// The kind of error.
    pub kind: ErrorKind,
    /// The printed path.
    pub field: String,
    /// The offending value, for the kinds that print one; `None` omits it.
    pub value: Option<Value>,
    /// Further text of the message; empty for none.
    pub detail: String,
}

impl Error {
    fn make(kind: ErrorKind, path: &Path, value: Option<Value>, detail: String) -> Self {
        Error { kind, field: path.as_str().to_owned(), value, detail }
    }

    /// `path: Required value: detail`.
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::make(ErrorKind::Required, path, None, detail.into())
    }

    /// `path: Invalid value: value: detail`.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::make(ErrorKind::Invalid, path, Some(value.into()), detail.into())
    }

    /// Like [`Error::invalid`] with the reason `FieldValueTypeInvalid`.
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::make(ErrorKind::TypeInvalid, path, Some(value.into()), detail.into())
    }

    /// `path: Not found: value`.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::make(ErrorKind::NotFound, path, Some(value.into()), String::new())
    }

    /// `path: Duplicate value: value`.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::make(ErrorKind::Duplicate, path, Some(value.into()), String::new())
    }

    /// `path: Unsupported value: value: supported values: "a", "b"`, in the order given.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| go::quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::make(ErrorKind::NotSupported, path, Some(value.into()), detail)
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::make(ErrorKind::Forbidden, path, None, detail.into())
    }

    /// `path: Too long: may not be more than N bytes`.
    pub fn too_long(path: &Path, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::make(ErrorKind::TooLong, path, None, format!("may not be more than {max} {unit}"))
    }

    /// `path: Too many: actual: must have at most N items`.
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self::make(ErrorKind::TooMany, path, Some(Value::from(actual)), detail)
    }

    /// `path: Internal error: detail`.
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::make(ErrorKind::Internal, path, None, detail.into())
    }

    /// Returns the message without the path, as a Status cause has it.
    pub fn body(&self) -> String {
        let mut out = self.kind.text().to_owned();
        if let Some(value) = &self.value {
            out.push_str(": ");
            match value {
                Value::String(s) => out.push_str(&go::quote(s)),
                other => out.push_str(&go::json(other)),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for Error {}

/// The errors of one validation, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorList(pub Vec<Error>);

impl ErrorList {
    /// Makes an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one error.
    pub fn push(&mut self, error: Error) {
        self.0.push(error);
    }

    /// Adds `Invalid` for each message of a name rule (see [`crate::names`]).
    pub fn push_invalid_each(&mut self, path: &Path, value: &str, messages: Vec<String>) {
        self.0.extend(messages.into_iter().map(|m| Error::invalid(path, value, m)));
    }

    /// Adds all errors of another list.
    pub fn append(&mut self, other: ErrorList) {
        self.0.extend(other.0);
    }

    /// Returns whether no error was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of errors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Iterates over the errors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }

    /// Returns the aggregate message: a single error alone, several as `[a, b]`, each repeated one only
    /// once.
    pub fn message(&self) -> String {
        go::aggregate(self.0.iter().map(ToString::to_string))
    }
}

impl From<Vec<Error>> for ErrorList {
    fn from(errors: Vec<Error>) -> Self {
        ErrorList(errors)
    }
}

impl IntoIterator for ErrorList {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_those_of_kubernetes() {
        let path = Path::new("spec").child("replicas");
        let e = Error::invalid(&path, -1, "must be greater than or equal to 0");
        assert_eq!(e.to_string(), "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
        let e = Error::required(&Path::new("spec").child("containers").index(0).child("name"), "");
        assert_eq!(e.to_string(), "spec.containers[0].name: Required value");
        let e = Error::not_supported(&Path::new("type"), "X", &["A", "B"]);
        assert_eq!(e.to_string(), "type: Unsupported value: \"X\": supported values: \"A\", \"B\"");
        let e = Error::invalid(&Path::new("selector"), json!({"a": "b"}), "no");
        assert_eq!(e.to_string(), "selector: Invalid value: {\"a\":\"b\"}: no");
        let e = Error::too_long(&Path::new("metadata").child("name"), 63);
        assert_eq!(e.to_string(), "metadata.name: Too long: may not be more than 63 bytes");
    }

    #[test]
    fn very_many_errors_are_joined_in_order_and_each_once() {
        // Compared each with all others they would take minutes.
        let path = |i: usize| Path::new("list").index(i / 2);
        let errors: Vec<Error> = (0..200_000).map(|i| Error::required(&path(i), "")).collect();
        let message = ErrorList(errors).message();
        assert!(message.starts_with("[list[0]: Required value, list[1]: Required value, "));
        assert_eq!(message.matches("Required value").count(), 100_000);
    }

    #[test]
    fn a_null_value_prints_as_null() {
        assert_eq!(Error::invalid(&Path::new("a"), Value::Null, "x").body(), "Invalid value: null: x");
    }
}
