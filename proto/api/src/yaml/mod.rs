//! YAML as Kubernetes reads and writes it: `sigs.k8s.io/yaml`, which is YAML 1.1 as in go-yaml v2. Bare
//! `yes`, `no`, `on`, `off`, `y` and `n` are booleans, `0644` and `0o644` are octal, `<<` merges, times
//! stay strings, and of several documents only the first is read. The API server reads and writes bodies
//! with it.
//!
//! `events.rs` runs the parser, `tree.rs` makes a tree of its events, `decode.rs` makes a JSON document of
//! the tree, `resolve.rs` resolves plain scalars, and `write.rs` writes YAML.

mod decode;
mod events;
mod resolve;
mod tree;
mod write;

pub use write::to_string;

use crate::json::Node;

/// Maximum number of `%TAG` directives of a text; Kubernetes' own files have none.
const MAX_TAG_DIRECTIVES: usize = 100;

/// The first document of a YAML text.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The document as `YAMLToJSON` gives it: members sorted by name; of repeated keys the last wins.
    pub node: Node,
    /// An error that only `YAMLToJSONStrict` gives: one text that names every repeated key; `None` if there
    /// is none.
    pub strict: Option<String>,
}

/// Reads the first document of a text; an empty text is `null`. `alias_bytes` limits how many bytes of
/// values the text's aliases may repeat: otherwise a few lines of nested aliases would fill the memory.
///
/// # Errors
///
/// The message of go-yaml, such as `yaml: line 2: mapping values are not allowed in this context`, or that
/// of `encoding/json` for a number that JSON does not have.
pub fn parse(text: &[u8], alias_bytes: usize) -> Result<Document, String> {
    // libyaml compares each directive with all before it.
    let directives = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"%TAG")).count();
    if directives > MAX_TAG_DIRECTIVES {
        return Err(format!("yaml: more than {MAX_TAG_DIRECTIVES} %TAG directives"));
    }
    let Some(tree) = tree::read(text)? else {
        return Ok(Document { node: Node::Null, strict: None });
    };
    decode::decode(&tree, alias_bytes)
}

#[cfg(test)]
mod tests;
