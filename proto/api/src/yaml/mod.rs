//! YAML as Kubernetes reads and writes it: `sigs.k8s.io/yaml`, which is YAML 1.1 by go-yaml v2. Bare `yes`, `no`,
//! `on`, `off`, `y` and `n` are booleans, `0644` and `0o644` are octal, `<<` merges, times stay strings, and of
//! several documents only the first is read. The API server reads and writes bodies with it.
//!
//! `events.rs` asks the parser, `tree.rs` makes nodes of its events, `decode.rs` makes a JSON document of the
//! nodes, `resolve.rs` says what a plain scalar means, `write.rs` goes the other way.

mod decode;
mod events;
mod resolve;
mod tree;
mod write;

pub use write::to_string;

use crate::json::Node;

/// The first document of a YAML text.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its value as `YAMLToJSON` gives it: members sorted by name, of repeated keys the last.
    pub node: Node,
    /// What `YAMLToJSONStrict` refuses and `YAMLToJSON` does not: one text that names every repeated key.
    pub strict: Option<String>,
}

/// Reads the first document of a text; an empty text is `null`. `alias_bytes` bounds how many bytes of values the
/// aliases of the text may repeat: a few lines of aliases of aliases would fill the memory otherwise.
///
/// # Errors
///
/// The text of go-yaml, e.g. `yaml: line 2: mapping values are not allowed in this context`, or that of
/// `encoding/json` for a number that JSON does not know.
pub fn parse(text: &[u8], alias_bytes: usize) -> Result<Document, String> {
    let Some(tree) = tree::read(text)? else {
        return Ok(Document { node: Node::Null, strict: None });
    };
    decode::decode(&tree, alias_bytes)
}

#[cfg(test)]
mod tests;
