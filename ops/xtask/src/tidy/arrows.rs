//! Checks the dependencies between the workspace's crates: each crate lists the
//! crates it may depend on. A new crate must be added to the list first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

/// Name of each crate of the workspace, and the workspace crates it may depend on directly.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto-env", &[]),
    ("proto-api", &["proto-env"]),
    ("proto-decode", &["proto-env"]),
    ("proto-wire", &["proto-env"]),
    ("storage", &["proto-env"]),
    // openraft uses it in the place of the published crate.
    ("base2histogram", &[]),
    ("consensus", &["proto-env", "proto-wire", "storage"]),
    ("master-apiserver", &["proto-api", "proto-env", "storage", "consensus"]),
    // Leader-only components use the API alone: never consensus or storage.
    ("master-client", &["proto-api", "proto-decode", "proto-env"]),
    ("master-controllers", &["proto-api", "proto-env", "master-client"]),
    ("master-scheduler", &["proto-api", "proto-env", "master-client"]),
    (
        "master-node",
        &[
            "proto-api",
            "proto-decode",
            "proto-env",
            "proto-wire",
            "storage",
            "consensus",
            "master-apiserver",
            "master-client",
            "master-controllers",
            "master-scheduler",
        ],
    ),
    // Workers never depend on a master's crates.
    ("worker-volumes", &["proto-api", "proto-env"]),
    ("worker-network", &["proto-api", "proto-decode", "proto-env", "proto-wire"]),
    ("worker-runtime", &["proto-api", "proto-env", "proto-wire"]),
    ("worker-agent", &["proto-api", "proto-decode", "proto-env", "worker-volumes"]),
    (
        "worker-node",
        &[
            "proto-api",
            "proto-env",
            "proto-wire",
            "worker-agent",
            "worker-network",
            "worker-runtime",
            "worker-volumes",
        ],
    ),
    (
        "ops-cli",
        &[
            "proto-api",
            "proto-env",
            "proto-wire",
            "chaos-disk",
            "chaos-live",
            "chaos-spec",
            "master-node",
            "worker-node",
            "worker-network",
            "worker-runtime",
        ],
    ),
    // The simulation compares the state of all replicas, so it depends on their crates.
    ("chaos-spec", &[]),
    // A file system that depends on no other crate; a master's or a test's files are stored on it.
    ("chaos-disk", &[]),
    // Takes the place of a published crate that porcupine-rs does not use.
    ("criterion", &[]),
    ("chaos-oracle", &["chaos-spec"]),
    ("chaos-power", &["chaos-disk", "proto-env", "storage", "consensus"]),
    ("chaos-live", &["chaos-disk", "chaos-oracle", "chaos-spec", "proto-env", "proto-wire"]),
    (
        "chaos-sim",
        &["chaos-oracle", "chaos-spec", "proto-env", "proto-wire", "storage", "consensus", "master-node"],
    ),
    ("ops-bench", &["proto-api", "proto-env", "proto-wire", "storage", "consensus"]),
    ("ops-xtask", &[]),
    // Whole-system tests run binaries only.
    ("tests", &[]),
];

/// Compares the dependencies in every Cargo.toml of the workspace with the list.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let workspace = manifest(&root.join("Cargo.toml"))?;
    let members = workspace["workspace"]["members"].as_array().context("no workspace members")?;
    let mut broken = Vec::new();
    for member in members.iter().filter_map(|m| m.as_str()) {
        let manifest = manifest(&root.join(member).join("Cargo.toml"))?;
        let name = manifest["package"]["name"].as_str().context("a crate without a name")?;
        if name != member.replace('/', "-") && !replaces_published(&workspace, name, member) {
            broken.push(format!("{member}: the crate is called {name}, not after its path"));
        }
        let Some(uses) = allowed.get(name) else {
            broken.push(format!("{name} has no arrows yet: enter it in ops/xtask/src/tidy/arrows.rs"));
            continue;
        };
        broken.extend(violations(name, &manifest, uses, &allowed));
    }
    Ok(broken)
}

/// Returns whether a crate of the workspace takes the place of a published one, so that it must have its name.
fn replaces_published(workspace: &toml::Value, name: &str, member: &str) -> bool {
    let patched = workspace.get("patch").and_then(|patch| patch.get("crates-io")?.get(name)?.get("path"));
    patched.and_then(|path| path.as_str()) == Some(member)
}

fn violations(
    name: &str,
    manifest: &toml::Value,
    uses: &BTreeSet<&str>,
    ours: &BTreeMap<&str, BTreeSet<&str>>,
) -> Vec<String> {
    let dependencies = manifest.get("dependencies").and_then(|d| d.as_table());
    dependencies
        .into_iter()
        .flat_map(|table| table.keys())
        .filter(|used| ours.contains_key(used.as_str()) && !uses.contains(used.as_str()))
        .map(|used| format!("{name} -> {used} is not an arrow of the house"))
        .collect()
}

fn manifest(path: &Path) -> Result<toml::Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let ours = ARROWS.iter().map(|(n, u)| (*n, u.iter().copied().collect())).collect();
        let manifest = toml::from_str("[dependencies]\nconsensus.workspace = true\nserde = '1'\n").unwrap();
        let uses = BTreeSet::from(["proto-api"]);
        let broken = violations("master-controllers", &manifest, &uses, &ours);
        assert_eq!(broken, ["master-controllers -> consensus is not an arrow of the house"]);
    }

    #[test]
    fn only_a_crate_that_replaces_a_published_one_has_its_name() {
        let text = "[patch.crates-io]\nhistogram = { path = \"a/b\" }\n";
        let workspace: toml::Value = toml::from_str(text).unwrap();
        assert!(replaces_published(&workspace, "histogram", "a/b"));
        assert!(!replaces_published(&workspace, "histogram", "a/c"));
        assert!(!replaces_published(&workspace, "other", "a/b"));
    }

    #[test]
    fn the_list_itself_has_no_cycle() {
        let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
        fn reaches(from: &str, to: &str, allowed: &BTreeMap<&str, &[&str]>) -> bool {
            allowed[from].iter().any(|next| *next == to || reaches(next, to, allowed))
        }
        for (name, _) in ARROWS {
            assert!(!reaches(name, name, &allowed), "{name} depends on itself");
        }
    }
}
