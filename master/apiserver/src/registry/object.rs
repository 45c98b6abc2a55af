//! Conversion of stored objects to the form in which they are served. An object is stored as canonical JSON
//! without a resourceVersion and served as the same bytes with the revision inserted, so a list or a watch
//! event costs a copy and no parsing. Labels and fields for selectors are parsed once per revision and shared
//! through the object's derived slot.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto_api::selector::Labels;
use proto_api::status::Status;
use serde_json::Value;
use storage::{Object, Revision};

use super::convert;
use super::store::Target;
use super::strategy::Strategy;
use crate::table::{Row, RowSlot, Rows};

/// Values derived from one revision of an object, for selectors and serving.
#[derive(Debug, Default)]
pub struct ObjectView {
    /// `metadata.labels`.
    pub labels: Pairs,
    /// Values of the field labels that selectors may name.
    pub fields: Pairs,
    spans: Spans,
}

/// A packed map with few entries. Every object that is served keeps two of these as long as it lives, and a
/// map of strings would take more memory than the object.
#[derive(Debug, Default)]
pub struct Pairs {
    /// Names and values in turn, concatenated.
    text: Box<str>,
    /// End offsets in `text` of each name and its value.
    ends: Box<[(u32, u32)]>,
}

impl Pairs {
    /// Returns the value of a name; `None` where there is none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut start = 0;
        for (name_end, value_end) in &self.ends {
            let (name_end, value_end) = (*name_end as usize, *value_end as usize);
            if self.text.get(start..name_end) == Some(name) {
                return self.text.get(name_end..value_end);
            }
            start = value_end;
        }
        None
    }
}

impl From<BTreeMap<String, String>> for Pairs {
    fn from(pairs: BTreeMap<String, String>) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(pairs.len()));
        // Offsets fit into 32 bits: objects are far smaller than 4 GiB.
        let end = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        for (name, value) in &pairs {
            text.push_str(name);
            let name_end = end(&text);
            text.push_str(value);
            ends.push((name_end, end(&text)));
        }
        Pairs { text: text.into(), ends: ends.into() }
    }
}

impl Labels for Pairs {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)
    }
}

/// Byte ranges of the parts that serving leaves out or replaces.
#[derive(Debug, Default)]
struct Spans {
    /// `"apiVersion":"..."` and `"kind":"..."`, each with its comma.
    types: Vec<Range<usize>>,
    /// The value of `metadata`, braces included.
    metadata: Option<Range<usize>>,
}

/// Values that readers derived from one revision of an object; kept in the object's derived slot.
#[derive(Debug, Default)]
struct Derived {
    view: OnceLock<Arc<ObjectView>>,
    row: RowSlot,
}

/// Returns the view of an object: shared, except for kinds served in two groups, whose field labels differ by
/// group.
pub fn view(object: &Object, target: Target<'_>) -> Arc<ObjectView> {
    if convert::is_converted(target.kind) {
        return Arc::new(make_view(object, target.strategy));
    }
    let derived = object.derived(|_| Derived::default());
    Arc::clone(derived.view.get_or_init(|| Arc::new(make_view(object, target.strategy))))
}

/// Returns the cells of an object in a Table, built on first use and rebuilt after they were dropped as idle.
/// `now` is read from a monotonic clock.
pub fn row(object: &Object, target: Target<'_>, rows: &Rows, now: Duration) -> Arc<Row> {
    let derived = object.derived(|_| Derived::default());
    rows.get(&derived.row, now, || {
        let value: Value = serde_json::from_slice(&object.value).unwrap_or_default();
        Row::new(target.kind.storage.0, target.kind.resource, &value)
    })
}

fn make_view(object: &Object, strategy: &dyn Strategy) -> ObjectView {
    let value: Value = match serde_json::from_slice(&object.value) {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(key = %object.key, %error, "a stored object is not JSON");
            return ObjectView::default();
        }
    };
    let fields = strategy.selectable_fields(&value);
    ObjectView { labels: labels(&value).into(), fields: fields.into(), spans: scan(&object.value) }
}

/// Returns `metadata.labels` of an object.
pub fn labels(value: &Value) -> BTreeMap<String, String> {
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    labels.into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| (k.clone(), v.to_owned()))).collect()
}

impl ObjectView {
    /// Appends the served JSON: with the revision, and with `apiVersion` and `kind` unless `item` is set
    /// (lists of built-in kinds leave them out of their items).
    pub fn write_json(&self, out: &mut Vec<u8>, object: &Object, revision: Revision, item: bool) {
        let bytes = &object.value;
        let mut at = 0;
        let mut cuts: Vec<(Range<usize>, bool)> = Vec::with_capacity(3);
        if item {
            cuts.extend(self.spans.types.iter().map(|r| (r.clone(), false)));
        }
        if let Some(metadata) = &self.spans.metadata {
            let inside = metadata.start + 1;
            cuts.push((inside..inside, true));
        }
        cuts.sort_by_key(|(range, _)| range.start);
        for (range, is_metadata) in cuts {
            // Two adjacent members that are both left out share a comma, so their ranges may overlap.
            out.extend_from_slice(&bytes[at..range.start.max(at)]);
            if is_metadata {
                write_version(out, revision, bytes.get(range.start) == Some(&b'}'));
            }
            at = range.end.max(at);
        }
        out.extend_from_slice(&bytes[at..]);
    }

    /// Appends the served JSON of the metadata only.
    pub fn write_metadata(&self, out: &mut Vec<u8>, object: &Object, revision: Revision) {
        let Some(range) = &self.spans.metadata else {
            out.extend_from_slice(b"{}");
            return;
        };
        let bytes = &object.value[range.clone()];
        out.push(b'{');
        write_version(out, revision, bytes.get(1) == Some(&b'}'));
        out.extend_from_slice(&bytes[1..]);
    }
}

fn write_version(out: &mut Vec<u8>, revision: Revision, last: bool) {
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(if last { b"\"" } else { b"\"," });
}

/// Returns the object as a value, with a resourceVersion.
///
/// # Errors
///
/// 500 where the stored bytes are not JSON.
pub fn value(object: &Object, revision: Revision) -> Result<Value, Status> {
    let mut value: Value = serde_json::from_slice(&object.value)
        .map_err(|error| Status::internal(format!("stored object {}: {error}", object.key)))?;
    set_version(&mut value, Some(revision));
    Ok(value)
}

/// Sets `metadata.resourceVersion`; `None` removes it.
pub fn set_version(value: &mut Value, revision: Option<Revision>) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        match revision {
            Some(revision) => {
                metadata.insert("resourceVersion".to_owned(), Value::from(revision.to_string()));
            }
            None => {
                metadata.remove("resourceVersion");
            }
        }
    }
}

/// Finds the top-level members that serving leaves out or replaces, in canonical (compact) JSON.
fn scan(bytes: &[u8]) -> Spans {
    let mut spans = Spans::default();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'}' {
        let start = at;
        let key_end = skip_value(bytes, at);
        let key = bytes.get(start + 1..key_end.saturating_sub(1)).unwrap_or_default();
        let value_start = key_end + 1;
        let value_end = skip_value(bytes, value_start);
        let comma = bytes.get(value_end) == Some(&b',');
        match key {
            b"apiVersion" | b"kind" => {
                let range = if comma {
                    start..value_end + 1
                } else if start > 1 {
                    start - 1..value_end
                } else {
                    start..value_end
                };
                spans.types.push(range);
            }
            b"metadata" if bytes.get(value_start) == Some(&b'{') => {
                spans.metadata = Some(value_start..value_end.min(bytes.len()));
            }
            _ => {}
        }
        at = value_end + usize::from(comma);
        if at <= start {
            break;
        }
    }
    spans
}

/// Returns the end of the JSON value that starts at `at`.
fn skip_value(bytes: &[u8], at: usize) -> usize {
    let (mut i, mut depth, mut in_string) = (at, 0_usize, false);
    while i < bytes.len() {
        let byte = bytes[i];
        if in_string {
            match byte {
                b'\\' => i += 1,
                b'"' => {
                    in_string = false;
                    if depth == 0 {
                        return i + 1;
                    }
                }
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return i,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        return i + 1;
                    }
                }
                b',' if depth == 0 => return i,
                _ => {}
            }
        }
        i += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(json: &str, item: bool) -> Value {
        let object = Object::new("/k".into(), json.as_bytes().to_vec().into(), 1, 7);
        let view = ObjectView { spans: scan(json.as_bytes()), ..ObjectView::default() };
        let mut out = Vec::new();
        view.write_json(&mut out, &object, 7, item);
        serde_json::from_slice(&out).expect("served bytes are JSON")
    }

    #[test]
    fn serving_splices_the_revision_into_metadata_alone() {
        let json = r#"{"apiVersion":"v1","data":{"metadata":"{\"x\":1}"},"kind":"ConfigMap","metadata":{"name":"a"}}"#;
        let got = served(json, false);
        assert_eq!(got["metadata"], serde_json::json!({"name": "a", "resourceVersion": "7"}));
        assert_eq!(got["data"]["metadata"], r#"{"x":1}"#);
        assert_eq!(got["kind"], "ConfigMap");
    }

    #[test]
    fn packed_pairs_are_the_map_they_were_made_of() {
        let map: BTreeMap<String, String> = [("a", "1"), ("ab", ""), ("b", "a"), ("é", "ü")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let pairs = Pairs::from(map.clone());
        for (name, value) in &map {
            assert_eq!(pairs.get(name), Some(value.as_str()));
        }
        assert_eq!((pairs.get("1"), pairs.get(""), Pairs::default().get("")), (None, None, None));
    }

    #[test]
    fn items_have_no_type() {
        for json in [
            r#"{"apiVersion":"v1","kind":"N","metadata":{}}"#,
            r#"{"a":[1,2,{"b":"}"}],"apiVersion":"v1","metadata":{"uid":"u"},"kind":"N"}"#,
            r#"{"apiVersion":"v1","kind":"N"}"#,
        ] {
            let got = served(json, true);
            assert!(got.get("kind").is_none() && got.get("apiVersion").is_none(), "{json} -> {got}");
        }
    }
}
