//! `ephor backup schedule`: stores a schedule for the leader and waits for the
//! first backup, shows the schedule and its status, or removes the schedule.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use master_node::backup::schedule::{BackupStatus, NAMESPACE, SCHEDULE, STATUS, Schedule};
use proto_env::{Random, SystemRandom};

use super::BucketArgs;
use super::passphrase::PassphraseArgs;

/// Environment variables that are passed on to the masters when they are set.
const VARIABLES: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"];
/// Longest time to wait for the first backup.
const FIRST_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Schedule backups that the leading master takes at intervals
///
/// The schedule, its passphrase and the AWS_... variables set here are stored as a Secret in
/// kube-system; what was done stands in ConfigMap ephor-backup-status there.
#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// Interval between two backups, such as 6h
    #[arg(long, value_parser = humantime::parse_duration, required_unless_present_any = ["show", "off"])]
    every: Option<Duration>,
    /// Number of scheduled bundles of this cluster to keep at the destination
    #[arg(long, default_value_t = 28)]
    keep: usize,
    /// Destination: a directory shared by all masters, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE", required_unless_present_any = ["show", "off"])]
    to: Option<String>,
    /// Show the schedule with its last success and last failure
    #[arg(long, conflicts_with = "off")]
    show: bool,
    /// Remove the schedule; existing bundles are kept
    #[arg(long)]
    off: bool,
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    bucket: BucketArgs,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Runs `ephor backup schedule`.
pub async fn run(arguments: ScheduleArgs) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.clone().unwrap_or_else(crate::kubeconfig::default_path);
    let client = crate::kubeconfig::client(&kubeconfig, None).await?;
    match (arguments.every, &arguments.to) {
        _ if arguments.show => show(&client).await,
        _ if arguments.off => off(&client).await,
        (Some(every), Some(to)) => set(&client, &arguments, every, to).await,
        _ => bail!("give --every and --to, or --show, or --off"),
    }
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn status(client: &Client) -> Result<BackupStatus> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    Ok(BackupStatus(maps.get_opt(STATUS).await?.and_then(|map| map.data).unwrap_or_default()))
}

async fn set(client: &Client, arguments: &ScheduleArgs, every: Duration, to: &str) -> Result<()> {
    let set = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    let schedule = Schedule {
        id: SystemRandom.uuid(),
        every,
        keep: arguments.keep,
        to: to.to_owned(),
        endpoint: arguments.bucket.endpoint.clone(),
        allow_http: arguments.bucket.allow_http,
        variables: VARIABLES.iter().filter_map(set).collect::<BTreeMap<_, _>>(),
        passphrase: arguments.passphrase.for_new()?,
    };
    schedule.validate()?;
    let mut secret = schedule.to_secret();
    let secrets = secrets(client);
    match secrets.get_opt(SCHEDULE).await? {
        None => drop(secrets.create(&PostParams::default(), &secret).await?),
        Some(known) => {
            secret.metadata.resource_version = known.metadata.resource_version;
            drop(secrets.replace(SCHEDULE, &PostParams::default(), &secret).await?);
        }
    }
    let first = tokio::time::timeout(FIRST_TIMEOUT, async {
        loop {
            let status = status(client).await?;
            if status.get("schedule") == Some(&schedule.id) {
                return Ok::<_, anyhow::Error>(status);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    });
    let Ok(status) = first.await else {
        println!("the first backup is not complete yet; see `ephor backup schedule --show`");
        return Ok(());
    };
    let status = status?;
    match status.get("lastError").filter(|error| !error.is_empty()) {
        Some(error) => bail!("the schedule is stored, but its first backup failed: {error}"),
        None => println!(
            "backups every {}; first bundle: {}",
            humantime::format_duration(every),
            bundle_of(&status)
        ),
    }
    Ok(())
}

async fn off(client: &Client) -> Result<()> {
    if secrets(client).get_opt(SCHEDULE).await?.is_none() {
        bail!("there is no schedule");
    }
    secrets(client).delete(SCHEDULE, &DeleteParams::default()).await?;
    println!("the schedule was removed; existing bundles are kept");
    Ok(())
}

async fn show(client: &Client) -> Result<()> {
    let Some(secret) = secrets(client).get_opt(SCHEDULE).await? else {
        println!("no backups are scheduled");
        return Ok(());
    };
    let schedule = Schedule::from_secret(secret)?;
    let every = humantime::format_duration(schedule.every);
    println!("{:<14} every {every} to {}, {} are kept", "schedule", schedule.to, schedule.keep);
    let status = status(client).await?;
    let or_none = |key: &str| status.get(key).filter(|text| !text.is_empty()).unwrap_or("none").to_owned();
    println!("{:<14} {}", "last success", or_none("lastSuccess"));
    if status.get("lastBundle").is_some() {
        let (objects, seconds) = (or_none("lastObjects"), or_none("lastSeconds"));
        println!("{:<14} {} ({objects} objects, {seconds} s)", "bundle", bundle_of(&status));
    }
    println!("{:<14} {}", "last failure", or_none("lastFailure"));
    if let Some(error) = status.get("lastError").filter(|error| !error.is_empty()) {
        bail!("the last backup failed: {error}");
    }
    Ok(())
}

fn bundle_of(status: &BackupStatus) -> &str {
    status.get("lastBundle").unwrap_or("none")
}
