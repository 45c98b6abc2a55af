//! Checks that every file named in ARCHITECTURE.md exists.

use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

const DOCUMENT: &str = "ops/docs/ARCHITECTURE.md";

/// Returns the names in backquotes that look like paths of files but do not exist.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let path = root.join(DOCUMENT);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(named_files(&text)?
        .into_iter()
        .filter(|(_, name)| !root.join(name).exists())
        .map(|(line, name)| format!("{DOCUMENT}:{line}: {name} does not exist"))
        .collect())
}

/// Finds paths with at least one `/`, in backquotes, ending in a known extension, with their line numbers.
fn named_files(text: &str) -> Result<Vec<(usize, String)>> {
    let pattern = Regex::new(r"`([\w.\-]+(?:/[\w.\-]+)+\.(?:rs|proto|md|yaml|toml|sh))`")?;
    let lines = text.lines().enumerate();
    Ok(lines
        .flat_map(|(i, line)| pattern.captures_iter(line).map(move |c| (i + 1, c[1].to_owned())))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_with_their_lines() {
        let found = named_files("first\n`a/b.rs` then `not a file` and `c/d/e.proto`\n").unwrap();
        assert_eq!(found, [(2, "a/b.rs".to_owned()), (2, "c/d/e.proto".to_owned())]);
    }
}
