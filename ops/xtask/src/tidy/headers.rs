//! Checks that every file opens with `//!`: what it does, who calls it, what it hands to whom.

use super::Sources;

/// Returns the files that do not open with `//!`.
pub fn check(sources: &Sources) -> Vec<String> {
    let silent = sources.0.iter().filter(|s| !s.text.starts_with("//!"));
    silent.map(|s| format!("{}: does not open with //!", s.path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::SourceFile;
    use super::*;

    #[test]
    fn a_file_without_a_header_is_found() {
        let source = |text: &str| SourceFile { path: "a.rs".into(), text: text.into() };
        assert_eq!(check(&Sources(vec![source("//! Says.\n"), source("fn main() {}\n")])).len(), 1);
    }
}
