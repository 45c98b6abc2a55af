//! Decodes a request body into an object: content types, syntax, apiVersion and kind, types,
//! `fieldValidation`, defaults. Handlers call [`decode_object`] for bodies and [`finish`] for patched
//! objects; both fail with the Status a stock server gives.

use proto_api::field::{Error, ErrorList, Path};
use proto_api::go;
use proto_api::json::Node;
use proto_api::kinds;
use proto_api::schema::{self, Schema};
use proto_api::status::Status;
use serde_json::Value;

mod document;

use document::{BodyDocument, format};

/// Size of the largest request body, in bytes.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Maximum number of values in an object: each text, number, list and map counts. A body of `{},{},{}` is short, but
/// with their defaults its items take a thousand times its memory, and some rules compare each with all others.
pub const MAX_VALUES: usize = 200_000;

const SCHEME: &str = "pkg/runtime/scheme.go:111";

/// A group, a version and a kind.
pub type Gvk<'a> = (&'a str, &'a str, &'a str);

/// Treatment of unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldValidation {
    /// Drops unknown and duplicate fields silently.
    Ignore,
    /// Drops them with a warning for each.
    Warn,
    /// Refuses the request.
    Strict,
}

impl FieldValidation {
    /// Parses the `fieldValidation` query parameter; absent and empty mean Warn.
    ///
    /// # Errors
    ///
    /// 422 for any other word; `options` is the kind of options it belongs to, e.g. `CreateOptions`.
    pub fn parse(parameter: Option<&str>, options: &str) -> Result<Self, Status> {
        match parameter {
            None | Some("" | "Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => {
                let path = Path::new("fieldValidation");
                let error = Error::not_supported(&path, other, &["", "Ignore", "Strict", "Warn"]);
                Err(Status::invalid("meta.k8s.io", options, "", ErrorList(vec![error])))
            }
        }
    }
}

/// A decoded object and the warnings for its client.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedBody {
    /// The object: typed, without unknown fields, with defaults, with apiVersion and kind.
    pub object: Value,
    /// Texts for `Warning: 299 - "..."` headers.
    pub warnings: Vec<String>,
}

/// Returns the media type of a Content-Type header, in lower case and without parameters.
pub fn media_type(content_type: Option<&str>) -> String {
    let header = content_type.unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body that is too large.
///
/// # Errors
///
/// 413 for a body longer than [`MAX_BODY`].
pub fn check_size(length: usize) -> Result<(), Status> {
    if length > MAX_BODY {
        return Err(Status::request_entity_too_large(format!("limit is {MAX_BODY}")));
    }
    Ok(())
}

/// Refuses a document of too many values.
///
/// # Errors
///
/// 413 for more than [`MAX_VALUES`].
pub fn check_values(node: &Node) -> Result<(), Status> {
    if node.is_larger_than(MAX_VALUES) {
        return Err(Status::request_entity_too_large(format!("limit is {MAX_VALUES} values")));
    }
    Ok(())
}

/// Decodes the body of a create or update as the kind that the path names.
///
/// # Errors
///
/// 415, 413, or 400 with the message of Kubernetes' decoder.
pub fn decode_object(
    content_type: Option<&str>,
    body: &[u8],
    gvk: Gvk<'_>,
    mode: FieldValidation,
) -> Result<DecodedBody, Status> {
    let format = format(content_type)?;
    check_size(body.len())?;
    let document = BodyDocument::open(format, body).map_err(|e| unrecognized(gvk.2, &e, body))?;
    let (api_version, kind) = document.type_meta().map_err(|e| unrecognized(gvk.2, &e, body))?;
    check_kind(&api_version, &kind, gvk)?;
    let shown = ObjectNames::of(&api_version, &kind, gvk);
    let mut found: Vec<String> = document.strict().into_iter().collect();
    let node = document.node(gvk).map_err(|e| Status::bad_request(shown.cannot(&e)))?;
    check_values(&node)?;
    let decoded = decode(&node, gvk).map_err(|e| Status::bad_request(shown.cannot(&e)))?;
    found.extend(decoded.strict);
    let warnings = match mode {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Strict if !found.is_empty() => {
            return Err(Status::bad_request(shown.cannot(&strict(&found))));
        }
        _ => found,
    };
    Ok(DecodedBody { object: typed(decoded.value, gvk), warnings })
}

/// Decodes a value as a kind that is not the path's resource, such as `DeleteOptions`; its apiVersion may
/// name any served group. Defaults are not set.
///
/// # Errors
///
/// The errors of [`decode_object`].
pub fn decode_options(content_type: Option<&str>, body: &[u8], gvk: Gvk<'_>) -> Result<Value, Status> {
    let format = format(content_type)?;
    check_size(body.len())?;
    let document = BodyDocument::open(format, body).map_err(|e| unrecognized(gvk.2, &e, body))?;
    document.type_meta().map_err(|e| unrecognized(gvk.2, &e, body))?;
    let shown = ObjectNames { kind: gvk.2, version: gvk.1, expected: gvk.2 };
    let node = document.node(gvk).map_err(|e| Status::bad_request(shown.cannot(&e)))?;
    check_values(&node)?;
    decode(&node, gvk).map(|d| d.value).map_err(|e| Status::bad_request(shown.cannot(&e)))
}

/// Decodes the object that a patch produced; errors quote it as `patched`. `found` are the strict errors of
/// the patch itself.
///
/// # Errors
///
/// 422 with the field `patch` for a value of a wrong type or, in Strict mode, for unknown fields and for
/// `found`.
pub fn finish(
    patched: &Value,
    found: Vec<String>,
    gvk: Gvk<'_>,
    mode: FieldValidation,
) -> Result<DecodedBody, Status> {
    let refuse = |message: &str| {
        let error = Error::invalid(&Path::new("patch"), go::json(patched), message);
        Status::invalid("", "", "", ErrorList(vec![error]))
    };
    let node = Node::from(patched);
    check_values(&node)?;
    let decoded = decode(&node, gvk).map_err(|e| refuse(&e))?;
    let all: Vec<String> = found.into_iter().chain(decoded.strict).collect();
    let warnings = match mode {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Strict if !all.is_empty() => return Err(refuse(&strict(&all))),
        _ => all,
    };
    Ok(DecodedBody { object: typed(decoded.value, gvk), warnings })
}

/// Converts an object to the canonical form in which it is stored and sent.
pub fn canonical(object: &mut Value, gvk: Gvk<'_>) {
    if let Some(schema) = Schema::of(gvk.0, gvk.1, gvk.2) {
        schema::encode(schema, object);
    }
}

/// Names of the object in error messages.
struct ObjectNames<'a> {
    kind: &'a str,
    version: &'a str,
    expected: &'a str,
}

impl<'a> ObjectNames<'a> {
    fn of(api_version: &'a str, kind: &'a str, gvk: Gvk<'a>) -> Self {
        let kind = if kind.is_empty() { gvk.2 } else { kind };
        let version = if api_version.is_empty() { gvk.1 } else { kinds::split_api_version(api_version).1 };
        ObjectNames { kind, version, expected: gvk.2 }
    }

    fn cannot(&self, why: &str) -> String {
        let ObjectNames { kind, version, expected } = self;
        format!("{kind} in version {} cannot be handled as a {expected}: {why}", go::quote(version))
    }
}

/// Checks that apiVersion and kind are those of the path.
fn check_kind(api_version: &str, kind: &str, gvk: Gvk<'_>) -> Result<(), Status> {
    let expected = kinds::api_version(gvk.0, gvk.1);
    let shown = ObjectNames::of(api_version, kind, gvk);
    let named = if api_version.is_empty() { expected.as_str() } else { api_version };
    if named == expected && shown.kind == gvk.2 {
        return Ok(());
    }
    let (group, version) = kinds::split_api_version(named);
    let known =
        Schema::of(group, version, shown.kind).is_some() && kinds::groups().iter().any(|(g, _)| *g == group);
    if !known {
        let (kind, version) = (go::quote(shown.kind), go::quote(named));
        let why = format!("no kind {kind} is registered for version {version} in scheme \"{SCHEME}\"");
        return Err(Status::bad_request(shown.cannot(&why)));
    }
    if shown.kind == gvk.2 {
        return Err(Status::bad_request(format!(
            "the API version in the data ({named}) does not match the expected API version ({expected})"
        )));
    }
    let from = format!("{version}.{}", shown.kind);
    let to = format!("{}.{}", internal_package(gvk.0), gvk.2);
    let why = format!("converting ({from}) to ({to}): unknown conversion");
    Err(Status::bad_request(shown.cannot(&why)))
}

/// Returns the Go package of a group's internal types; for events it is that of core.
fn internal_package(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        other => other.split('.').next().unwrap_or(other),
    }
}

fn decode(node: &Node, gvk: Gvk<'_>) -> Result<schema::Decoded, String> {
    schema::decode(schema_of(gvk)?, node)
}

fn schema_of(gvk: Gvk<'_>) -> Result<Schema, String> {
    Schema::of(gvk.0, gvk.1, gvk.2).ok_or_else(|| format!("no schema for {}/{} {}", gvk.0, gvk.1, gvk.2))
}

/// Sets defaults, apiVersion and kind.
fn typed(mut object: Value, gvk: Gvk<'_>) -> Value {
    if let Some(schema) = Schema::of(gvk.0, gvk.1, gvk.2) {
        schema::apply_defaults(schema, &mut object);
    }
    if let Some(members) = object.as_object_mut() {
        members.insert("apiVersion".into(), Value::String(kinds::api_version(gvk.0, gvk.1)));
        members.insert("kind".into(), Value::String(gvk.2.to_owned()));
    }
    object
}

/// Returns the message that reports several strict errors together.
fn strict(errors: &[String]) -> String {
    format!("strict decoding error: {}", errors.join(", "))
}

fn unrecognized(kind: &str, why: &str, body: &[u8]) -> Status {
    let message =
        format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summary(body));
    Status::bad_request(message)
}

/// Returns the beginning of a body for an error message: text where it looks like JSON, hexadecimal
/// otherwise.
fn summary(body: &[u8]) -> String {
    const LENGTH: usize = 30;
    let start = &body[..body.len().min(LENGTH)];
    let more = if body.len() > LENGTH { " ..." } else { "" };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => {
            let hex: String = start.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_api::protobuf;
    use serde_json::json;

    const DEPLOYMENT: Gvk<'static> = ("apps", "v1", "Deployment");

    fn message(body: &str) -> String {
        match decode_object(Some("application/json"), body.as_bytes(), DEPLOYMENT, FieldValidation::Strict) {
            Ok(_) => String::new(),
            Err(status) => status.message.clone(),
        }
    }

    #[test]
    fn bodies_that_are_no_objects_get_the_stock_message() {
        let start = "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; \
                     json parse error: ";
        assert_eq!(message(""), format!("{start}unexpected end of JSON input (<empty>)"));
        assert_eq!(message("{"), format!("{start}unexpected end of JSON input ({{)"));
        assert!(
            message("[]").ends_with("Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)"),
            "{}",
            message("[]")
        );
        assert!(message("{\"kind\": 1}").ends_with(
            "json: cannot unmarshal number into Go struct field .kind of type string ({\"kind\": 1})"
        ));
    }

    #[test]
    fn a_foreign_kind_or_version_is_named() {
        assert_eq!(
            message(r#"{"apiVersion": "nonsense", "kind": "Deployment"}"#),
            "Deployment in version \"nonsense\" cannot be handled as a Deployment: no kind \"Deployment\" is registered \
             for version \"nonsense\" in scheme \"pkg/runtime/scheme.go:111\""
        );
        assert!(
            message(r#"{"apiVersion": "v1", "kind": "Pod"}"#)
                .contains("cannot be handled as a Deployment: converting")
        );
    }

    #[test]
    fn a_short_body_of_very_many_items_is_refused_in_every_format() {
        let code = |kind: &str, body: &[u8]| {
            let decoded = decode_object(Some(kind), body, ("", "v1", "Pod"), FieldValidation::Ignore);
            decoded.map_or_else(|status| status.code, |_| 200)
        };
        let items = |count: usize| vec!["{}"; count].join(",");
        let body = |count: usize| format!("{{\"spec\":{{\"containers\":[{}]}}}}", items(count)).into_bytes();
        for kind in ["application/json", "application/yaml"] {
            assert_eq!(code(kind, &body(MAX_VALUES - 3)), 200, "{kind}");
            assert_eq!(code(kind, &body(MAX_VALUES)), 413, "{kind}");
        }
        // PodSpec is field 2 of a Pod, containers are field 2 of a PodSpec; each item is empty.
        let containers = [0x12, 0].repeat(MAX_VALUES);
        let field = |tag: u8, bytes: &[u8]| {
            let mut out = vec![tag];
            prost::encoding::encode_varint(bytes.len() as u64, &mut out);
            [out, bytes.to_vec()].concat()
        };
        let message = [protobuf::MAGIC.to_vec(), field(0x12, &field(0x12, &containers))].concat();
        assert_eq!(code(protobuf::MEDIA_TYPE, &message), 413);
        let patched: Value = serde_json::from_slice(&body(MAX_VALUES)).expect("JSON");
        let finished = finish(&patched, Vec::new(), ("", "v1", "Pod"), FieldValidation::Ignore);
        assert_eq!(finished.expect_err("refused").code, 413);
    }

    #[test]
    fn unknown_fields_follow_the_mode() {
        let body = br#"{"bogus": 1, "metadata": {"name": "x"}}"#;
        let run = |mode| decode_object(None, body, DEPLOYMENT, mode);
        assert_eq!(run(FieldValidation::Warn).expect("decodes").warnings, ["unknown field \"bogus\""]);
        assert!(run(FieldValidation::Ignore).expect("decodes").warnings.is_empty());
        assert_eq!(
            run(FieldValidation::Strict).expect_err("refused").message,
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"bogus\""
        );
        assert_eq!(FieldValidation::parse(Some("Nonsense"), "CreateOptions").expect_err("refused").code, 422);
    }

    #[test]
    fn yaml_is_read_and_other_types_are_refused() {
        let yaml = b"metadata:\n  name: x\nspec:\n  replicas: 2\n";
        let decoded =
            decode_object(Some("application/yaml; charset=utf-8"), yaml, DEPLOYMENT, FieldValidation::Strict)
                .expect("decodes");
        assert_eq!(decoded.object["spec"]["replicas"], json!(2));
        assert_eq!(decoded.object["apiVersion"], json!("apps/v1"));
        let cbor = decode_object(Some("application/cbor"), b"", DEPLOYMENT, FieldValidation::Warn);
        assert_eq!(cbor.expect_err("refused").code, 415);
        assert_eq!(check_size(MAX_BODY + 1).expect_err("refused").code, 413);
    }

    #[test]
    fn yaml_means_what_kubernetes_reads_in_it() {
        let pod = ("", "v1", "Pod");
        let run = |body: &str, mode| decode_object(Some("application/yaml"), body.as_bytes(), pod, mode);
        let spec = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: &l {app: x}, annotations: {<<: *l}}\n\
                    spec:\n  hostNetwork: yes\n  automountServiceAccountToken: off\n  containers: []\n  \
                    volumes:\n  - {name: c, configMap: {name: c, defaultMode: 0640, items: [{key: k, path: p, mode: 0o400}]}}\n";
        let object = run(spec, FieldValidation::Strict).expect("decodes").object;
        assert_eq!(object["metadata"]["annotations"], json!({"app": "x"}));
        assert_eq!(object["spec"]["hostNetwork"], json!(true));
        assert_eq!(object["spec"]["automountServiceAccountToken"], json!(false));
        assert_eq!(object["spec"]["volumes"][0]["configMap"]["defaultMode"], json!(0o640));
        assert_eq!(object["spec"]["volumes"][0]["configMap"]["items"][0]["mode"], json!(0o400));

        let word = "spec: {containers: [{name: c, env: [{name: A, value: on}]}]}\n";
        assert_eq!(
            run(word, FieldValidation::Ignore).expect_err("refused").message,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field \
             EnvVar.spec.containers.env.value of type string"
        );
        let twice = "metadata:\n  name: x\n  name: z\n";
        assert_eq!(
            run(twice, FieldValidation::Strict).expect_err("refused").message,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: yaml: unmarshal errors:\n  \
             line 3: key \"name\" already set in map"
        );
        assert_eq!(run(twice, FieldValidation::Ignore).expect("decodes").object["metadata"]["name"], "z");
        assert_eq!(
            run("a: b: c", FieldValidation::Ignore).expect_err("refused").message,
            "the object provided is unrecognized (must be of type Pod): yaml: mapping values are not allowed in \
             this context (613a20623a2063)"
        );
    }

    #[test]
    fn protobuf_takes_the_path_of_json() {
        let run = |body: &[u8]| {
            decode_object(Some(protobuf::MEDIA_TYPE), body, DEPLOYMENT, FieldValidation::Strict)
        };
        // apiVersion and kind; metadata.name "x"; spec.replicas 2.
        let body = b"k8s\0\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\x09\x0a\x03\x0a\x01x\x12\x02\x08\x02";
        let decoded = run(body).expect("decodes");
        assert_eq!(decoded.object["metadata"]["name"], json!("x"));
        assert_eq!(decoded.object["spec"]["replicas"], json!(2));
        assert_eq!(decoded.object["spec"]["progressDeadlineSeconds"], json!(600));
        assert_eq!(decoded.object["apiVersion"], json!("apps/v1"));
        assert_eq!(
            run(b"{}").expect_err("refused").message,
            "the object provided is unrecognized (must be of type Deployment): provided data does not appear to be \
             a protobuf message, expected prefix [107 56 115 0] ({})"
        );
        assert_eq!(
            run(b"k8s\0\x12\x02\x0a\x05").expect_err("refused").message,
            "Deployment in version \"v1\" cannot be handled as a Deployment: unexpected EOF"
        );
    }
}
