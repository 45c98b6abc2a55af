//! `cargo xtask tidy`: checks rules of the source tree that no compiler checks. One
//! rule a file; each returns the places that violate it.

mod architecture;
mod arrows;
mod headers;
mod lengths;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use walkdir::WalkDir;

/// Runs every rule over the source tree and prints the violations.
pub fn run(root: &Path) -> Result<()> {
    let sources = Sources::read(root)?;
    let rules: [(&str, Vec<String>); 4] = [
        ("dependency arrows", arrows::check(root)?),
        ("//! on every file", headers::check(&sources)),
        ("file and function lengths", lengths::check(&sources)?),
        ("files named in ARCHITECTURE.md", architecture::check(root)?),
    ];
    let mut broken = 0;
    for (rule, places) in rules {
        println!("tidy: {rule}: {}", if places.is_empty() { "ok" } else { "BROKEN" });
        for place in &places {
            println!("  {place}");
        }
        broken += places.len();
    }
    if broken > 0 {
        bail!("{broken} places are not tidy");
    }
    Ok(())
}

/// A Rust file of the source tree.
pub struct SourceFile {
    /// Path relative to the root.
    pub path: PathBuf,
    /// Content of the file.
    pub text: String,
}

/// All Rust files of the source tree.
pub struct Sources(pub Vec<SourceFile>);

impl Sources {
    fn read(root: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        let visible = |e: &walkdir::DirEntry| {
            let name = e.file_name().to_string_lossy();
            e.depth() == 0 || !(name.starts_with('.') || name == "target")
        };
        for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(visible) {
            let entry = entry?;
            if entry.path().extension().is_some_and(|e| e == "rs") {
                let path = entry.path().strip_prefix(root)?.to_owned();
                sources.push(SourceFile { text: std::fs::read_to_string(entry.path())?, path });
            }
        }
        Ok(Self(sources))
    }
}

impl SourceFile {
    /// Whether the file holds tests, whose length is not checked.
    pub fn is_test(&self) -> bool {
        self.path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "benches")))
            || self.path.file_stem().is_some_and(|s| s.to_string_lossy().ends_with("tests"))
    }
}
