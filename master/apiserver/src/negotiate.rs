//! Content negotiation: which representation a client accepts (JSON or YAML; whole object, Table or metadata
//! alone). Handlers negotiate before they read; `respond.rs` encodes the answer.

use proto_api::status::Status;

/// Encoding of an answer's bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

/// Form in which an object or list is encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// The object or list itself.
    Object,
    /// `as=Table;v=v1;g=meta.k8s.io`.
    Table,
    /// `as=PartialObjectMetadata;v=v1;g=meta.k8s.io`, of one object or of each watch event.
    PartialMetadata,
    /// `as=PartialObjectMetadataList;v=v1;g=meta.k8s.io`.
    PartialMetadataList,
}

/// The representation of an answer: its encoding and form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Representation {
    /// Encoding of the bytes.
    pub encoding: Encoding,
    /// Form of the object or list.
    pub shape: Shape,
}

const ACCEPTABLE: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// Chooses the first acceptable clause of an Accept header, by quality, then order. `transforms` says whether
/// this resource can be served as a Table or as metadata alone.
///
/// # Errors
///
/// 406 where the server has none of the accepted representations.
pub fn negotiate(accept: Option<&str>, transforms: bool) -> Result<Representation, Status> {
    let plain = Representation { encoding: Encoding::Json, shape: Shape::Object };
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return Ok(plain) };
    let mut clauses: Vec<Clause> = accept.split(',').map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
        .iter()
        .find_map(|clause| clause.representation(transforms))
        .ok_or_else(|| Status::not_acceptable(&ACCEPTABLE))
}

struct Clause {
    media: String,
    quality: f32,
    target: Option<(String, String, String)>,
}

impl Clause {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut kind, mut version, mut group) = (1.0, None, String::new(), String::new());
        for part in parts {
            match part.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
                Some(("q", v)) => quality = v.parse().unwrap_or(1.0),
                Some(("as", v)) => kind = Some(v.to_owned()),
                Some(("v", v)) => version = v.to_owned(),
                Some(("g", v)) => group = v.to_owned(),
                _ => {}
            }
        }
        Self { media, quality, target: kind.map(|k| (group, version, k)) }
    }

    fn representation(&self, transforms: bool) -> Option<Representation> {
        let encoding = match self.media.as_str() {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" | "application/x-yaml" => Encoding::Yaml,
            _ => return None,
        };
        let shape = match &self.target {
            None => Shape::Object,
            Some((group, version, kind)) => {
                if !transforms || group != "meta.k8s.io" || !matches!(version.as_str(), "v1" | "v1beta1") {
                    return None;
                }
                match kind.as_str() {
                    "Table" => Shape::Table,
                    "PartialObjectMetadata" => Shape::PartialMetadata,
                    "PartialObjectMetadataList" => Shape::PartialMetadataList,
                    _ => return None,
                }
            }
        };
        Some(Representation { encoding, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectls_header_gets_a_table_and_falls_back_to_json() {
        let header = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(Some(header), true).expect("table").shape, Shape::Table);
        assert_eq!(negotiate(Some(header), false).expect("json").shape, Shape::Object);
    }

    #[test]
    fn protobuf_falls_back_to_json_only_where_json_is_accepted() {
        assert!(negotiate(Some("application/vnd.kubernetes.protobuf,application/json"), true).is_ok());
        assert_eq!(negotiate(Some("application/vnd.kubernetes.protobuf"), true).expect_err("406").code, 406);
    }

    #[test]
    fn unknown_types_and_unknown_targets_are_not_acceptable() {
        assert_eq!(negotiate(Some("text/csv"), true).expect_err("406").code, 406);
        let header = "application/json;as=Chart;v=v1;g=meta.k8s.io";
        assert_eq!(negotiate(Some(header), true).expect_err("406").code, 406);
    }

    #[test]
    fn no_header_and_wildcards_get_json() {
        for accept in [None, Some(""), Some("*/*")] {
            assert_eq!(negotiate(accept, true).expect("json").encoding, Encoding::Json);
        }
    }
}
