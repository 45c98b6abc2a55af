//! Checks lengths, so that files stay readable: median about 120 lines a file, nine in ten
//! at most 400, none over 800; at most 2 % of functions over 70 lines. Tests at the
//! end of a file do not count.

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Sources;

const FILE_MAX: usize = 800;
const FILE_P90: usize = 400;
const FUNCTION_LONG: usize = 70;
const LONG_FUNCTIONS_PERCENT: usize = 2;

/// Returns the files that are too long, and the longest functions when too many are long.
pub fn check(sources: &Sources) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut files = Vec::new();
    let mut functions = Vec::new();
    for source in sources.0.iter().filter(|s| !s.is_test()) {
        let file = syn::parse_file(&source.text)
            .with_context(|| format!("{} does not parse", source.path.display()))?;
        let lines = production_lines(&file, &source.text);
        if lines > FILE_MAX {
            broken.push(format!("{}: {lines} lines, at most {FILE_MAX}", source.path.display()));
        }
        files.push(lines);
        let mut visitor = Functions { path: source.path.display().to_string(), found: Vec::new() };
        visitor.visit_file(&file);
        functions.extend(visitor.found);
    }
    files.sort_unstable();
    if let Some(p90) = files.get(files.len() * 9 / 10).filter(|p90| **p90 > FILE_P90) {
        broken.push(format!("one file in ten has {p90} lines or more, at most {FILE_P90}"));
    }
    let mut long: Vec<_> = functions.iter().filter(|(lines, _)| *lines > FUNCTION_LONG).collect();
    if long.len() * 100 > functions.len() * LONG_FUNCTIONS_PERCENT {
        long.sort_unstable_by(|a, b| b.cmp(a));
        broken.push(format!(
            "{} of {} functions are over {FUNCTION_LONG} lines, at most {LONG_FUNCTIONS_PERCENT} %:",
            long.len(),
            functions.len()
        ));
        broken.extend(long.iter().map(|(lines, place)| format!("  {place}: {lines} lines")));
    }
    Ok(broken)
}

/// Counts the lines of a file without its `#[cfg(test)]` modules.
fn production_lines(file: &syn::File, text: &str) -> usize {
    let tests = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if is_test(&module.attrs) => Some(lines_of(module)),
        _ => None,
    });
    text.lines().count().saturating_sub(tests.sum())
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| match &a.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string().contains("test"),
        _ => a.path().is_ident("test"),
    })
}

fn lines_of(node: &impl Spanned) -> usize {
    let span = node.span();
    span.end().line - span.start().line + 1
}

struct Functions {
    path: String,
    found: Vec<(usize, String)>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        self.found.push((lines_of(block), format!("{}:{line} {}", self.path, signature.ident)));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceFile;
    use super::*;

    #[test]
    fn a_long_file_is_found_but_not_for_its_tests() {
        let long = "//! x\n".to_owned() + &"const A: u8 = 0;\n".repeat(900);
        let tests =
            "//! x\n#[cfg(test)]\nmod tests {\n".to_owned() + &"const A: u8 = 0;\n".repeat(900) + "}\n";
        let source = |path: &str, text: String| SourceFile { path: path.into(), text };
        let broken = check(&Sources(vec![source("tests.txt", tests)])).unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        let broken = check(&Sources(vec![source("long.rs", long)])).unwrap();
        assert!(broken.iter().any(|b| b.contains("901 lines")), "{broken:?}");
    }

    #[test]
    fn too_many_long_functions_are_listed() {
        let body = "    let _ = 0;\n".repeat(80);
        let text = format!("//! x\nfn long() {{\n{body}}}\nfn short() {{}}\n");
        let broken = check(&Sources(vec![SourceFile { path: "a.rs".into(), text }])).unwrap();
        assert!(broken.iter().any(|b| b.contains("long: 82 lines")), "{broken:?}");
    }
}
