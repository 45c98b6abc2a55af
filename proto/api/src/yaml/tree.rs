//! Builds a tree of nodes from the events of the YAML parser, as go-yaml's `parser` does. The nodes are in
//! one list and refer to each other by index, so that an alias is one number and nothing recurses.

use std::collections::HashMap;

use super::events::{Parser, ParserEvent};
use crate::json::MAX_DEPTH;

/// The index of a node in [`Tree::nodes`].
pub(super) type Id = usize;

/// The kind and content of a node.
#[derive(Clone, Debug)]
pub(super) enum NodeKind {
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
    pub(super) kind: NodeKind,
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
            (ParserEvent::DocumentStart { minor: Some(2..) }, _) => {
                return Err("yaml: found incompatible YAML document".into());
            }
            (ParserEvent::StreamStart | ParserEvent::DocumentStart { .. }, _) => {}
            (ParserEvent::StreamEnd, _) => return Ok(None),
            (ParserEvent::DocumentEnd, _) => {
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
    fn add(&mut self, event: ParserEvent, line: u64) -> Result<(), String> {
        let (kind, anchor, opens) = match event {
            ParserEvent::Scalar { anchor, tag, text, plain } => {
                (NodeKind::Scalar { text, tag: tag.unwrap_or_default(), plain }, anchor, false)
            }
            ParserEvent::Alias { anchor } => {
                let of = self.anchors.get(&anchor).copied();
                let of = of.ok_or_else(|| format!("yaml: unknown anchor '{anchor}' referenced"))?;
                (NodeKind::Alias { name: anchor, of }, None, false)
            }
            ParserEvent::SequenceStart { anchor } => (NodeKind::Sequence(Vec::new()), anchor, true),
            ParserEvent::MappingStart { anchor } => (NodeKind::Mapping(Vec::new()), anchor, true),
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
            Some(NodeKind::Sequence(children) | NodeKind::Mapping(children)) => children.push(id),
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
