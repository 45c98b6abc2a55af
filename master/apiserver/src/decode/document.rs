//! A request body (JSON, YAML or protobuf) whose kind has not been checked yet. `decode.rs` opens a document,
//! checks its apiVersion and kind, and then reads its fields.

use proto_api::json::{self, Node};
use proto_api::protobuf::{self, Envelope};
use proto_api::status::Status;
use proto_api::yaml;

use super::{Gvk, schema_of};

const META_STRUCT: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// Serialization format of a body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

/// A body whose apiVersion and kind can be read and whose fields may not have been decoded yet.
pub(super) enum BodyDocument<'a> {
    /// JSON or YAML; `strict` is the error in the text itself that strict validation reports.
    Node { node: Node, strict: Option<String> },
    /// Protobuf, with the fields still encoded.
    Message(Envelope<'a>),
}

impl<'a> BodyDocument<'a> {
    /// Parses a body as far as possible without knowing its kind.
    pub(super) fn open(format: BodyFormat, body: &'a [u8]) -> Result<Self, String> {
        match format {
            BodyFormat::Json => json::parse(body)
                .map(|node| Self::Node { node, strict: None })
                .map_err(|e| format!("couldn't get version/kind; json parse error: {e}")),
            // YAML aliases may expand to at most the size allowed for a body.
            BodyFormat::Yaml => yaml::parse(body, super::MAX_BODY)
                .map(|document| Self::Node { node: document.node, strict: document.strict }),
            BodyFormat::Protobuf => protobuf::envelope(body).map(Self::Message).map_err(|e| e.to_string()),
        }
    }

    /// Returns apiVersion and kind; each is empty where absent or null.
    pub(super) fn type_meta(&self) -> Result<(String, String), String> {
        match self {
            BodyDocument::Node { node, .. } => type_meta(node),
            BodyDocument::Message(found) => {
                check_api_version(&found.api_version)?;
                Ok((found.api_version.clone(), found.kind.clone()))
            }
        }
    }

    /// Returns the error in the text itself that strict validation reports, whatever the kind; `None` for
    /// none.
    pub(super) fn strict(&self) -> Option<String> {
        match self {
            BodyDocument::Node { strict, .. } => strict.clone(),
            BodyDocument::Message(_) => None,
        }
    }

    /// Returns the fields, decoded as those of the given kind.
    pub(super) fn node(self, gvk: Gvk<'_>) -> Result<Node, String> {
        match self {
            BodyDocument::Node { node, .. } => Ok(node),
            BodyDocument::Message(found) => {
                protobuf::message(schema_of(gvk)?, found.raw).map_err(|e| e.to_string())
            }
        }
    }
}

/// Returns the format a Content-Type names; `None` means JSON.
///
/// # Errors
///
/// 415 for an unknown content type.
pub(super) fn format(content_type: Option<&str>) -> Result<BodyFormat, Status> {
    match super::media_type(content_type).as_str() {
        "" | "application/json" => Ok(BodyFormat::Json),
        "application/yaml" | "application/x-yaml" => Ok(BodyFormat::Yaml),
        protobuf::MEDIA_TYPE => Ok(BodyFormat::Protobuf),
        _ => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Returns apiVersion and kind; each is empty where absent or null.
fn type_meta(node: &Node) -> Result<(String, String), String> {
    let error = |what: String| format!("couldn't get version/kind; json parse error: {what}");
    match node {
        Node::Null | Node::Object(_) => {}
        other => {
            let name = other.go_name();
            return Err(error(format!("json: cannot unmarshal {name} into Go value of type {META_STRUCT}")));
        }
    }
    let text = |key: &str| match node.get(key) {
        None | Some(Node::Null) => Ok(String::new()),
        Some(Node::String(s)) => Ok(s.clone()),
        Some(other) => {
            let name = other.go_name();
            Err(error(format!("json: cannot unmarshal {name} into Go struct field .{key} of type string")))
        }
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    check_api_version(&api_version)?;
    Ok((api_version, kind))
}

fn check_api_version(api_version: &str) -> Result<(), String> {
    if api_version.matches('/').count() > 1 {
        return Err(format!("unexpected GroupVersion string: {api_version}"));
    }
    Ok(())
}
