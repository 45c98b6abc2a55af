//! `ephor backup`: saves the state and keys of a cluster to one encrypted file,
//! verifies it, restores a new cluster from it, and schedules backups by the
//! leader. `master_node::backup` describes the file.

mod passphrase;
mod save;
mod schedule;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use master_node::backup::{
    self, BundleLocation, BundleManifest, LocationOptions, Passphrase, RestoreOptions,
};
use proto_env::{Env, TlsNetwork};
use tokio_util::sync::CancellationToken;

use self::passphrase::PassphraseArgs;
use crate::config_file;

/// Save, verify and restore the state of a cluster
#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    Save(save::SaveArgs),
    Verify(VerifyArgs),
    Restore(RestoreArgs),
    Schedule(schedule::ScheduleArgs),
}

/// Options for reaching a bucket; credentials and region come from the usual AWS_... variables.
#[derive(Debug, Args)]
pub struct BucketArgs {
    /// URL of an S3-compatible store [default: AWS]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Allow plain HTTP to the store
    #[arg(long)]
    allow_http: bool,
}

/// Read a whole bundle and verify its integrity
#[derive(Debug, Args)]
struct VerifyArgs {
    /// Bundle to read: a file or s3://BUCKET/KEY
    bundle: String,
    #[command(flatten)]
    bucket: BucketArgs,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Restore a bundle into the data directory of the first master of a new cluster
///
/// The new cluster has the objects, keys and settings of the old one, an id of its own, and this
/// master alone; start it with `ephor master --data-dir DIR`, and join others to it. It may be killed
/// at any point and run again. The old masters must not run any more.
#[derive(Debug, Args)]
struct RestoreArgs {
    /// Bundle to read: a file or s3://BUCKET/KEY
    bundle: String,
    /// Data directory to create
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the new master [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    bucket: BucketArgs,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

impl BucketArgs {
    fn place(&self, text: &str) -> Result<BundleLocation> {
        Ok(BundleLocation::parse(text, &self.options(BTreeMap::new()))?)
    }

    fn options(&self, variables: BTreeMap<String, String>) -> LocationOptions {
        LocationOptions { endpoint: self.endpoint.clone(), allow_http: self.allow_http, variables }
    }
}

/// Runs `ephor backup`.
pub async fn run(arguments: BackupArgs) -> Result<()> {
    match arguments.command {
        BackupCommand::Save(arguments) => save::run(arguments).await,
        BackupCommand::Verify(arguments) => verify(arguments).await,
        BackupCommand::Restore(arguments) => restore(arguments).await,
        BackupCommand::Schedule(arguments) => schedule::run(arguments).await,
    }
}

async fn verify(arguments: VerifyArgs) -> Result<()> {
    let place = arguments.bucket.place(&arguments.bundle)?;
    let source = place.open().await?;
    let passphrase = arguments.passphrase.for_bundle()?;
    let checked = tokio::task::spawn_blocking(move || backup::verify(source, &passphrase)).await?;
    let manifest = checked.with_context(|| place.to_string())?;
    print_manifest(&manifest);
    println!("{place} is whole");
    Ok(())
}

async fn restore(arguments: RestoreArgs) -> Result<()> {
    let begun = Instant::now();
    let place = arguments.bucket.place(&arguments.bundle)?;
    let source = place.open().await?;
    let passphrase: Passphrase = arguments.passphrase.for_bundle()?;
    let options = RestoreOptions {
        data_dir: arguments.data_dir.clone(),
        name: arguments.name.unwrap_or_else(config_file::hostname),
        ..RestoreOptions::default()
    };
    let name = options.name.clone();
    // The restore opens no connections, so the network needs no certificates.
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    let restored =
        tokio::task::spawn_blocking(move || backup::restore(source, &passphrase, &options, &env)).await?;
    let (manifest, restored) = restored.with_context(|| place.to_string())?;
    print_manifest(&manifest);
    let directory = arguments.data_dir.display();
    println!(
        "{directory} holds {} objects at revision {} for master {} ({name}) of a new cluster, after {:.1} s",
        restored.objects,
        restored.revision,
        restored.node_id,
        begun.elapsed().as_secs_f64()
    );
    println!("start it:  ephor master --data-dir {directory} --name {name} --advertise-address ADDRESS");
    Ok(())
}

fn print_manifest(manifest: &BundleManifest) {
    let head = &manifest.head;
    for (label, value) in [
        ("cluster", head.cluster_id.clone()),
        ("taken", format!("{} from {} (ephor {})", head.time, head.master, head.version)),
        ("revision", format!("{} (log index {}, term {})", head.revision, head.applied_index, head.term)),
        ("objects", head.objects.to_string()),
        (
            "content",
            format!("{} bytes in {} entries, format {}", manifest.bytes, manifest.entries, head.format),
        ),
        ("blake3", manifest.blake3.clone()),
    ] {
        println!("{label:<10} {value}");
    }
    if let Some(reason) = &head.stale {
        println!("{:<10} there was no quorum: later acknowledged writes may be missing ({reason})", "STALE");
    }
}
