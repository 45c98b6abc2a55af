//! Builds a tree of nodes from the events of the YAML parser, as go-yaml's `parser` does. The nodes are in
//! one list and refer to each other by index, so that an alias is one number and nothing recurses.

use std::collections::HashMap;

use super::events::{Event, Parser};
use crate::json::MAX_DEPTH;

/// The index of a node in [`Tree::nodes`].
pub(super) type Id = usize;

/// The kind and content of a node.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A scalar; `plain` is false for quoted, literal and folded scalars and for scalars with a tag.
    Scalar { text: String, tag: String, plain: bool },
    /// A reference to the node with this anchor.
    Alias { name: String, of: Id },
    /// Items in order.
    Sequence(Vec<Id>),
    /// Keys and values in turn.
    Mapping(Vec<Id>),
}

/// One node and the line, counted from 0, on which it starts.
#[derive(Clone, Debug)]
pub(super) struct TreeNode {
    pub(super) kind: Kind,
    pub(super) line: u64,
}

/// One document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<TreeNode>,
    pub(super) root: Id,
}

/// Reads the first document; `None` if the text has none.
pub(super) fn read(text: &[u8]) -> Result<Option<Tree>, String> {
    let mut parser = Parser::new(text)?;
    let mut builder = Builder::default();
    loop {
        match parser.next()? {
            // go-yaml reads YAML 1.1 and no later version.
            (Event::DocumentStart { minor: Some(2..) }, _) => {
                return Err("yaml: found incompatible YAML document".into());
            }
            (Event::StreamStart | Event::DocumentStart { .. }, _) => {}
            (Event::StreamEnd, _) => return Ok(None),
            (Event::DocumentEnd, _) => {
                return Ok(builder.root.map(|root| Tree { nodes: builder.nodes, root }));
            }
            (event, line) => builder.add(event, line)?,
        }
    }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<TreeNode>,
    anchors: HashMap<String, Id>,
    /// Open sequences and mappings, outermost first.
    open: Vec<Id>,
    root: Option<Id>,
}

impl Builder {
    fn add(&mut self, event: Event, line: u64) -> Result<(), String> {
        let (kind, anchor, opens) = match event {
            Event::Scalar { anchor, tag, text, plain } => {
                (Kind::Scalar { text, tag: tag.unwrap_or_default(), plain }, anchor, false)
            }
            Event::Alias { anchor } => {
                let of = self.anchors.get(&anchor).copied();
                let of = of.ok_or_else(|| format!("yaml: unknown anchor '{anchor}' referenced"))?;
                (Kind::Alias { name: anchor, of }, None, false)
            }
            Event::SequenceStart { anchor } => (Kind::Sequence(Vec::new()), anchor, true),
            Event::MappingStart { anchor } => (Kind::Mapping(Vec::new()), anchor, true),
            _ => {
                self.open.pop();
                return Ok(());
            }
        };
        let id = self.nodes.len();
        self.nodes.push(TreeNode { kind, line });
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, id);
        }
        match self.open.last().map(|holder| &mut self.nodes[*holder].kind) {
            Some(Kind::Sequence(children) | Kind::Mapping(children)) => children.push(id),
            _ => self.root = Some(id),
        }
        if opens {
            if self.open.len() >= MAX_DEPTH {
                return Err(format!("yaml: exceeded max depth of {MAX_DEPTH}"));
            }
            self.open.push(id);
        }
        Ok(())
    }
}
