//! `cargo xtask schema`: generates `proto/api/src/schema/{table,docs}.txt` from the Go types of Kubernetes,
//! once for each Kubernetes release. Developers run it; nothing else depends on Go. `go.rs` parses the
//! source, `write.rs` writes the two files, `proto-api` reads them.

mod go;
mod tags;
mod write;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Go module, directory inside the module, and name in the schema table of each package.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("k8s.io/apimachinery", "pkg/apis/meta/v1", "meta/v1"),
    ("k8s.io/apimachinery", "pkg/types", "types"),
    ("k8s.io/api", "admissionregistration/v1", "admissionregistration/v1"),
    ("k8s.io/api", "apps/v1", "apps/v1"),
    ("k8s.io/api", "authentication/v1", "authentication/v1"),
    ("k8s.io/api", "authorization/v1", "authorization/v1"),
    ("k8s.io/api", "autoscaling/v1", "autoscaling/v1"),
    ("k8s.io/api", "autoscaling/v2", "autoscaling/v2"),
    ("k8s.io/api", "batch/v1", "batch/v1"),
    ("k8s.io/api", "certificates/v1", "certificates/v1"),
    ("k8s.io/api", "coordination/v1", "coordination/v1"),
    ("k8s.io/api", "core/v1", "core/v1"),
    ("k8s.io/api", "discovery/v1", "discovery/v1"),
    ("k8s.io/api", "events/v1", "events/v1"),
    ("k8s.io/api", "flowcontrol/v1", "flowcontrol/v1"),
    ("k8s.io/api", "networking/v1", "networking/v1"),
    ("k8s.io/api", "node/v1", "node/v1"),
    ("k8s.io/api", "policy/v1", "policy/v1"),
    ("k8s.io/api", "rbac/v1", "rbac/v1"),
    ("k8s.io/api", "resource/v1", "resource/v1"),
    ("k8s.io/api", "scheduling/v1", "scheduling/v1"),
    ("k8s.io/api", "storage/v1", "storage/v1"),
];

/// Arguments of `cargo xtask schema`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The version of the Go modules k8s.io/api and k8s.io/apimachinery.
    #[arg(long, default_value = "v0.35.4")]
    version: String,
    /// The directory to write table.txt and docs.txt to.
    #[arg(long, default_value = "proto/api/src/schema")]
    out: PathBuf,
}

/// Reads the Go types and writes the two files.
pub fn run(args: &Args) -> Result<()> {
    let mut packages = Vec::new();
    for module in ["k8s.io/apimachinery", "k8s.io/api"] {
        let root = module_dir(module, &args.version)?;
        for (_, dir, name) in PACKAGES.iter().filter(|(m, _, _)| *m == module) {
            packages.push(read_package(&root.join(dir), name)?);
        }
    }
    let table = write::table(&packages, &args.version)?;
    let docs = write::docs(&packages);
    for (name, text) in [("table.txt", &table), ("docs.txt", &docs)] {
        let path = args.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{} {} lines, {} bytes", path.display(), text.lines().count(), text.len());
    }
    Ok(())
}

/// Returns the directory of a Go module in the module cache; lets Go download it when it is missing.
fn module_dir(module: &str, version: &str) -> Result<PathBuf> {
    let wanted = format!("{module}@{version}");
    let out = Command::new("go")
        .args(["mod", "download", "-json", &wanted])
        .output()
        .context("run `go mod download` (the schema table is made from Kubernetes' Go types)")?;
    if !out.status.success() {
        bail!("go mod download {wanted}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let dir = answer["Dir"].as_str().with_context(|| format!("no directory for {wanted}"))?;
    Ok(PathBuf::from(dir))
}

/// Parses the type files of one package; tests and generated code hold no types of the API.
fn read_package(dir: &Path, name: &str) -> Result<go::Package> {
    let mut package = go::Package::new(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "go"))
        .filter(|p| {
            let file = p.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
            !file.ends_with("_test.go") && !file.starts_with("zz_") && !file.contains("generated")
        })
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        package.read(&text);
    }
    Ok(package)
}
