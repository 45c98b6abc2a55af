//! PATCH bodies: JSON patch, merge patch and strategic merge patch applied to a stored object, whose result
//! is decoded again like a request body. Errors and their codes are those of a stock server.

use std::collections::HashSet;

use json_patch::PatchOperation;
use proto_api::json::{self, Node};
use proto_api::patch::{self, Error as MergeError};
use proto_api::schema::Schema;
use proto_api::status::Status;
use serde_json::Value;

use crate::decode::{self, DecodedBody, FieldValidation, Gvk, MAX_BODY};

/// Maximum number of operations in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// Maximum number of strict errors that are kept, as upstream.
const MAX_STRICT: usize = 100;

/// Total size of strict errors in bytes, above which no further one is kept.
const MAX_STRICT_BYTES: usize = 64 * 1024;

/// Type of a patch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PatchType {
    /// JSON patch (RFC 6902).
    Json,
    /// Merge patch (RFC 7396).
    Merge,
    /// Strategic merge patch, with Kubernetes' merge keys and directives.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// Returns the patch type a Content-Type header names.
    ///
    /// # Errors
    ///
    /// 415 for an unknown type, and for server-side apply, which is not served yet; the answer lists the
    /// served types.
    pub fn from_content_type(content_type: Option<&str>) -> Result<Self, Status> {
        match decode::media_type(content_type).as_str() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Err(apply_unserved()),
            _ => {
                let message = "415: Unsupported Media Type";
                Err(Status::unsupported_media_type(message).with_details("", "", ""))
            }
        }
    }
}

/// Returns the 415 for server-side apply, which is not served yet; it lists the served types.
fn apply_unserved() -> Status {
    Status::unsupported_media_type(
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
    )
}

/// Applies a patch to an object as it is served (with apiVersion, kind and resourceVersion) and decodes the
/// result as the same kind.
///
/// # Errors
///
/// 400, 413 or 422, as a stock server gives.
pub fn apply_patch(
    patch_type: PatchType,
    body: &[u8],
    current: &Value,
    gvk: Gvk<'_>,
    mode: FieldValidation,
) -> Result<DecodedBody, Status> {
    decode::check_size(body.len())?;
    let node = json::parse(body);
    if let Ok(node) = &node {
        decode::check_values(node)?;
    }
    let (patched, found) = match patch_type {
        PatchType::Json => json_patch(node, current)?,
        PatchType::Merge => merge_patch(node, current)?,
        PatchType::Strategic => strategic_patch(node, current, gvk)?,
        PatchType::Apply => return Err(apply_unserved()),
    };
    decode::finish(&patched, found, gvk, mode)
}

type Patched = Result<(Value, Vec<String>), Status>;

fn undecodable(why: &str) -> Status {
    Status::bad_request(format!("error decoding patch: {why}"))
}

fn json_patch(node: Result<Node, String>, current: &Value) -> Patched {
    let node = node.map_err(|e| undecodable(&e))?;
    check_numbers(&node).map_err(|e| undecodable(&e))?;
    let items = match &node {
        Node::Array(items) => items.as_slice(),
        Node::Null => &[],
        other => {
            let name = other.go_name();
            let message =
                format!("json: cannot unmarshal {name} into Go value of type []handlers.jsonPatchOp");
            return Err(undecodable(&message));
        }
    };
    if items.len() > MAX_OPERATIONS {
        let why = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            items.len()
        );
        return Err(Status::request_entity_too_large(why));
    }
    let mut found = Vec::new();
    let mut operations = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        check_operation(i, item, &mut found)?;
        let operation: PatchOperation =
            serde_json::from_value(item.to_value()).map_err(|_| Status::unprocessable())?;
        operations.push(operation);
    }
    let mut patched = current.clone();
    let mut copied_bytes = 0;
    for operation in &operations {
        check_growth(operation, &patched, &mut copied_bytes)?;
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|_| Status::unprocessable())?;
    }
    Ok((patched, found))
}

/// Refuses an operation that makes the object larger or deeper than any request body could be: by copying the
/// object into itself, each of a few operations doubles its size or depth.
fn check_growth(operation: &PatchOperation, object: &Value, copied_bytes: &mut usize) -> Result<(), Status> {
    let (path, value) = match operation {
        PatchOperation::Add(add) => (&add.path, Some(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
        PatchOperation::Copy(copy) => (&copy.path, object.pointer(copy.from.as_str())),
        PatchOperation::Move(moved) => (&moved.path, object.pointer(moved.from.as_str())),
        _ => return Ok(()),
    };
    let Some(value) = value else { return Ok(()) };
    let (bytes, depth) = extent(value);
    // Moves count too: they add no bytes, but each moved value has been traversed here.
    if matches!(operation, PatchOperation::Copy(_) | PatchOperation::Move(_)) {
        *copied_bytes += bytes;
    }
    if *copied_bytes > MAX_BODY {
        let why = format!("the accumulated size of copied and moved values exceeds {MAX_BODY} bytes");
        return Err(Status::request_entity_too_large(why));
    }
    if path.as_str().matches('/').count() + depth > json::MAX_DEPTH {
        let why = format!("the object is nested deeper than {}", json::MAX_DEPTH);
        return Err(Status::request_entity_too_large(why));
    }
    Ok(())
}

/// Returns the approximate size of a value in bytes, and its depth.
fn extent(value: &Value) -> (usize, usize) {
    let add = |sum: (usize, usize), (bytes, depth): (usize, usize)| (sum.0 + bytes, sum.1.max(depth + 1));
    match value {
        Value::Array(items) => items.iter().map(extent).fold((2, 1), add),
        Value::Object(members) => {
            let sizes = members.iter().map(|(key, value)| {
                let (bytes, depth) = extent(value);
                (key.len() + 4 + bytes, depth)
            });
            sizes.fold((2, 1), add)
        }
        Value::String(text) => (text.len() + 2, 1),
        _ => (8, 1),
    }
}

/// Checks the types of one operation's members and collects its unknown ones as strict errors.
fn check_operation(i: usize, item: &Node, found: &mut Vec<String>) -> Result<(), Status> {
    let members = match item {
        Node::Object(members) => members,
        Node::Null => return Err(Status::unprocessable()),
        other => {
            let name = other.go_name();
            return Err(undecodable(&format!(
                "json: cannot unmarshal {name} into Go value of type handlers.jsonPatchOp"
            )));
        }
    };
    for (key, value) in members {
        match (key.as_str(), value) {
            ("value", _) | ("op" | "path" | "from", Node::String(_) | Node::Null) => {}
            ("op" | "path" | "from", other) => {
                let (name, key) = (other.go_name(), key);
                let message = format!(
                    "json: cannot unmarshal {name} into Go struct field jsonPatchOp.{key} of type string"
                );
                return Err(undecodable(&message));
            }
            _ if found.len() >= MAX_STRICT => {}
            _ => found.push(format!("json patch unknown field \"[{i}].{key}\"")),
        }
    }
    Ok(())
}

/// Step from a value to one inside it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Member(&'a str),
    Item(usize),
}

/// Collects the strict errors of an untyped object: its duplicate members. Paths are written out for reported
/// members only, and at most [`MAX_STRICT`] errors of together [`MAX_STRICT_BYTES`] are kept, as a client
/// chooses how long member names are and how many members a long one contains.
fn duplicates<'a>(node: &'a Node, at: &mut Vec<Step<'a>>, found: &mut Vec<String>) {
    match node {
        Node::Object(members) => {
            let mut seen = HashSet::with_capacity(members.len());
            for (key, value) in members {
                at.push(Step::Member(key));
                if !seen.insert(key.as_str()) {
                    report(at, found);
                }
                duplicates(value, at, found);
                at.pop();
            }
        }
        Node::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                at.push(Step::Item(i));
                duplicates(item, at, found);
                at.pop();
            }
        }
        _ => {}
    }
}

fn report(at: &[Step<'_>], found: &mut Vec<String>) {
    let kept_bytes: usize = found.iter().map(String::len).sum();
    if found.len() >= MAX_STRICT || kept_bytes >= MAX_STRICT_BYTES {
        return;
    }
    let mut path = String::new();
    for step in at {
        match step {
            Step::Member(key) if path.is_empty() => path.push_str(key),
            Step::Member(key) => {
                path.push('.');
                path.push_str(key);
            }
            Step::Item(i) => path.push_str(&format!("[{i}]")),
        }
    }
    found.push(format!("duplicate field {}", proto_api::go::quote(&path)));
}

/// Returns the first number that Go's `float64` does not hold, as Go's error for an untyped value; a merge
/// would otherwise take it for null and remove the field.
fn check_numbers(node: &Node) -> Result<(), String> {
    match node.first_overflow() {
        Some(text) => Err(format!("json: cannot unmarshal number {text} into Go value of type float64")),
        None => Ok(()),
    }
}

fn merge_patch(node: Result<Node, String>, current: &Value) -> Patched {
    let node = node.map_err(|e| undecodable(&e))?;
    if !matches!(node, Node::Object(_) | Node::Null) {
        let name = node.go_name();
        let message =
            format!("json: cannot unmarshal {name} into Go value of type map[string]interface {{}}");
        return Err(undecodable(&message));
    }
    check_numbers(&node).map_err(|e| undecodable(&e))?;
    let mut found = Vec::new();
    duplicates(&node, &mut Vec::new(), &mut found);
    let mut patched = current.clone();
    patch::merge(&mut patched, &node.to_value());
    Ok((patched, found))
}

fn strategic_patch(node: Result<Node, String>, current: &Value, gvk: Gvk<'_>) -> Patched {
    let node = node.map_err(Status::bad_request)?;
    check_numbers(&node).map_err(Status::bad_request)?;
    let patch = match node.to_value() {
        Value::Object(patch) => patch,
        Value::Null => serde_json::Map::new(),
        _ => {
            let name = node.go_name();
            let message =
                format!("json: cannot unmarshal {name} into Go value of type map[string]interface {{}}");
            return Err(Status::bad_request(message));
        }
    };
    let mut found = Vec::new();
    duplicates(&node, &mut Vec::new(), &mut found);
    let schema = Schema::of(gvk.0, gvk.1, gvk.2)
        .ok_or_else(|| Status::bad_request("strategic merge patch format is not supported"))?;
    let original = current.as_object().cloned().unwrap_or_default();
    let patched = patch::strategic_merge(schema.id(), original, patch).map_err(|e| match e {
        MergeError::Format(message) => Status::bad_request(message),
        MergeError::Content(_) => Status::unprocessable(),
        MergeError::Other(message) => Status::failure(500, "", message),
    })?;
    Ok((Value::Object(patched), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POD: Gvk<'static> = ("", "v1", "Pod");

    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}})
    }

    fn run(patch_type: PatchType, body: &Value, mode: FieldValidation) -> Result<DecodedBody, Status> {
        apply_patch(patch_type, body.to_string().as_bytes(), &pod(), POD, mode)
    }

    #[test]
    fn the_three_types_change_the_object() {
        let json = json!([{"op": "add", "path": "/metadata/labels/b", "value": "2"}]);
        let merge = json!({"metadata": {"labels": {"b": "2"}}});
        for (patch_type, body) in
            [(PatchType::Json, json), (PatchType::Merge, merge.clone()), (PatchType::Strategic, merge)]
        {
            let got = run(patch_type, &body, FieldValidation::Strict).expect("applies");
            assert_eq!(got.object["metadata"]["labels"], json!({"a": "1", "b": "2"}));
        }
    }

    #[test]
    fn json_patches_that_fail_are_unprocessable() {
        for body in [
            json!([{"op": "remove", "path": "/metadata/nothing"}]),
            json!([{"op": "test", "path": "/metadata/name", "value": "other"}]),
            json!([{"op": "jump", "path": "/x"}]),
            json!([{"op": "add", "path": "bad", "value": 1}]),
        ] {
            let status = run(PatchType::Json, &body, FieldValidation::Warn).expect_err("fails");
            assert_eq!(status.code, 422, "{body}");
        }
        let status = run(PatchType::Json, &json!({"op": "add"}), FieldValidation::Warn).expect_err("fails");
        assert!(
            status.message.ends_with("object into Go value of type []handlers.jsonPatchOp"),
            "{}",
            status.message
        );
        let mut deeper = vec![json!({"op": "add", "path": "/x", "value": {"a": {}}})];
        // Each operation copies the whole nested object into its innermost member.
        let mut top = "/x/a".to_owned();
        for _ in 0..12 {
            deeper.push(json!({"op": "copy", "from": "/x", "path": format!("{top}/a")}));
            top = format!("{top}/a{}", top.strip_prefix("/x").unwrap_or_default());
        }
        assert_eq!(run(PatchType::Json, &json!(deeper), FieldValidation::Warn).expect_err("fails").code, 413);
        let many = vec![json!({"op": "test", "path": "/kind", "value": "Pod"}); MAX_OPERATIONS + 1];
        assert_eq!(run(PatchType::Json, &json!(many), FieldValidation::Warn).expect_err("fails").code, 413);
    }

    #[test]
    fn a_result_of_the_wrong_type_names_the_patch() {
        let status = run(PatchType::Merge, &json!({"metadata": {"labels": {"a": 1}}}), FieldValidation::Warn)
            .expect_err("fails");
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        assert_eq!(status.details.as_ref().map(|d| d.causes[0].field.clone()), Some("patch".into()));
        let warned = run(PatchType::Merge, &json!({"bogus": 1}), FieldValidation::Warn).expect("applies");
        assert_eq!(warned.warnings, ["unknown field \"bogus\""]);
    }

    #[test]
    fn members_that_come_twice_cost_no_more_than_the_patch_is_long() {
        let inner = "\"a\":1,".repeat(20_000);
        let body =
            format!("{{\"{}\":{{{inner}\"a\":1}},\"b\":[{{\"c\":1,\"c\":2}}]}}", "k".repeat(1_000_000));
        for patch_type in [PatchType::Merge, PatchType::Strategic] {
            let got = apply_patch(patch_type, body.as_bytes(), &pod(), POD, FieldValidation::Warn)
                .expect("applies");
            let bytes: usize = got.warnings.iter().map(String::len).sum();
            assert!(got.warnings.len() <= MAX_STRICT + 100 && bytes < 4_000_000, "{bytes}");
        }
        let few = r#"{"metadata":{"labels":{"a":"1","a":"2"}},"x":[{"c":1,"c":2}]}"#;
        let got = apply_patch(PatchType::Merge, few.as_bytes(), &pod(), POD, FieldValidation::Warn)
            .expect("applies");
        assert_eq!(
            got.warnings,
            ["duplicate field \"metadata.labels.a\"", "duplicate field \"x[0].c\"", "unknown field \"x\""]
        );
    }

    #[test]
    fn a_number_that_no_float_holds_removes_nothing() {
        for (patch_type, body) in [
            (PatchType::Merge, r#"{"spec":{"priority":1e999}}"#),
            (PatchType::Strategic, r#"{"spec":{"priority":-1e999}}"#),
            (PatchType::Json, r#"[{"op":"add","path":"/spec/priority","value":1e999}]"#),
        ] {
            let mut pod = pod();
            pod["spec"]["priority"] = json!(7);
            let status = apply_patch(patch_type, body.as_bytes(), &pod, POD, FieldValidation::Warn)
                .expect_err("refused");
            assert_eq!(status.code, 400, "{body}");
            assert!(status.message.contains("1e999 into Go value of type float64"), "{}", status.message);
        }
    }

    #[test]
    fn types_that_are_not_served_are_refused() {
        assert_eq!(
            PatchType::from_content_type(Some("application/unknown+json")).expect_err("refused").code,
            415
        );
        assert_eq!(
            PatchType::from_content_type(Some("application/merge-patch+json; charset=utf-8"))
                .expect("served"),
            PatchType::Merge
        );
    }
}
