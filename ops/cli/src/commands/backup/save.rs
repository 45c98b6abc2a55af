//! `ephor backup save`: receives the entries from a master as fast as they can be
//! written, encrypts them locally, and gives the bundle its name when it is complete.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use master_node::backup::{self, BundleEntry, Error, Head};
use proto_wire::MESSAGE_LIMIT_BYTES;
use proto_wire::cluster::BackupRequest;
use tokio::sync::mpsc;
use tonic::Request;

use super::passphrase::PassphraseArgs;
use super::{BucketArgs, print_manifest};
use crate::admin;

/// Maximum number of entries queued between receiver and writer.
const ENTRIES_AHEAD: usize = 4;
/// Deadline for the master to describe the backed-up state; it may be waiting for a quorum.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest pause between two entries.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Take a backup of the whole cluster from any master, also without a quorum
///
/// The bundle holds all objects at one revision, the cluster's settings, its CA and its keys,
/// encrypted with the passphrase. Without a quorum it is what that master alone has, and says so.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Destination: a file, a directory or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Peer address (HOST:PORT) of a master to call [default: found through the API]
    #[arg(long)]
    address: Option<String>,
    #[command(flatten)]
    bucket: BucketArgs,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Runs `ephor backup save`.
pub async fn run(arguments: SaveArgs) -> Result<()> {
    let begun = Instant::now();
    let place = arguments.bucket.place(&arguments.to)?;
    let passphrase = arguments.passphrase.for_new()?;
    let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
    let master = admin::any(&kubeconfig, arguments.address.as_deref()).await?;
    let mut master = master.max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let answer = tokio::time::timeout(BEGIN_TIMEOUT, master.backup(Request::new(BackupRequest {}))).await;
    let answer = answer.context("the master does not answer")?;
    let mut stream = answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    let mut next = async || -> Result<Option<BundleEntry>, Error> {
        let entry = tokio::time::timeout(ENTRY_TIMEOUT, stream.message()).await;
        let entry = entry.map_err(|_| Error::Source("the master has stopped sending".to_owned()))?;
        let entry = entry.map_err(|status| Error::Source(status.message().to_owned()))?;
        Ok(entry.map(|entry| BundleEntry { name: entry.name, data: entry.data.into() }))
    };
    let Some(first) = next().await? else { bail!("the master sent nothing") };
    let head: Head = serde_json::from_slice(&first.data).context("the master's answer is malformed")?;
    let bundle = place.of(&head.file_name("backup"));
    let sink = bundle.create().await?;
    let (sender, entries) = mpsc::channel(ENTRIES_AHEAD);
    let writing = tokio::task::spawn_blocking(move || backup::write(entries, sink, &passphrase));
    let mut entry = Ok(Some(first));
    while let Some(more) = entry.transpose() {
        let failed = more.is_err();
        // When the writer no longer receives, it has failed and returns the reason itself.
        if sender.send(more).await.is_err() || failed {
            break;
        }
        entry = next().await;
    }
    drop(sender);
    let manifest = writing.await?.with_context(|| bundle.to_string())?;
    print_manifest(&manifest);
    println!("{bundle} was written in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
