//! `cargo xtask verify`, which changes nothing, and `cargo xtask fix`, which changes files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Checks format, lints, tidiness and licences: everything that needs no running cluster.
pub fn verify(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    crate::tidy::run(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    deny(root)
}

/// Formats the source and applies clippy's automatic fixes.
pub fn fix(root: &Path) -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
    cargo(root, &clippy)?;
    cargo(root, &["fmt", "--all"])
}

/// Checks licences, bans and sources. The advisory database is on the public network,
/// which builds here do not reach, so advisories are not checked.
fn deny(root: &Path) -> Result<()> {
    let known = Command::new("cargo").args(["deny", "--version"]).output().is_ok_and(|o| o.status.success());
    if !known {
        println!("verify: cargo-deny is not installed: licences, bans and sources NOT CHECKED");
        println!("        (cargo install cargo-deny --locked)");
        return Ok(());
    }
    println!("verify: advisories NOT CHECKED (the database cannot be reached)");
    cargo(root, &["deny", "--config", ".deny.toml", "check", "licenses", "bans", "sources"])
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    println!("verify: cargo {}", arguments.join(" "));
    let status = Command::new("cargo").args(arguments).current_dir(root).status().context("running cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
