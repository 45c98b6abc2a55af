//! `ephor status`: shows the state of every master and its alarms, and fails when there are
//! alarms; `--digest` compares the masters' states at one revision and fails when they differ.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use proto_env::CertificateInfo;
use proto_wire::cluster::{MasterStatus, StatusRequest};

use super::members::role_of;
use crate::admin;

/// Show the state of every master and its alarms; exit with 1 if there are alarms
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Peer address (HOST:PORT) of a master to call [default: found through the API]
    #[arg(long)]
    address: Option<String>,
    /// Compare the digests of the masters' states at one revision; exit with 1 if they differ
    #[arg(long)]
    digest: bool,
}

/// Runs `ephor status`.
pub async fn run(arguments: StatusArgs) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
    let mut master = admin::any(&kubeconfig, arguments.address.as_deref()).await?;
    let request = admin::with_deadline(StatusRequest { revision: 0, digest: arguments.digest, local: false });
    let masters = master.status(request).await?.into_inner().masters;
    println!(
        "{:<12} {:<8} {:>6} {:>10} {:>10} {:>9} {:>8} {:>8} {:>8} {:>9}  VERSION",
        "NAME", "ROLE", "TERM", "REVISION", "APPLIED", "OBJECTS", "MEMORY", "LOG", "STORE", "FREE"
    );
    for status in &masters {
        println!("{}", line(status));
    }
    for status in masters.iter().filter(|status| !status.autopilot.is_empty()) {
        let name = status.member.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        println!("autopilot ({name}): {}", status.autopilot);
    }
    certificates(&masters, &kubeconfig)?;
    if arguments.digest {
        compare(&masters)?;
    }
    alarms(&masters)
}

/// Prints when the masters' certificates, the CA and the kubeconfig's certificate expire.
fn certificates(masters: &[MasterStatus], kubeconfig: &std::path::Path) -> Result<()> {
    let date = |seconds: u64| {
        let at = Timestamp::from_second(i64::try_from(seconds).unwrap_or_default());
        at.map(|it| it.to_string()).unwrap_or_default()
    };
    for status in masters.iter().filter(|status| !status.certificates.is_empty()) {
        let name = status.member.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        let ends = status.certificates.iter().map(|it| format!("{} {}", it.name, date(it.not_after)));
        println!("certificates ({name}) end: {}", ends.collect::<Vec<_>>().join(", "));
    }
    let own = CertificateInfo::from_pem(&crate::kubeconfig::material(kubeconfig)?.certificate_pem)?;
    let end = own.not_after.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    println!("certificate of {} ends: {}", kubeconfig.display(), date(end));
    if SystemTime::now() >= own.renew_at() {
        println!("  renew it on a master: ephor kubeconfig --output FILE");
    }
    Ok(())
}

/// Prints the alarms; fails when there are any.
fn alarms(masters: &[MasterStatus]) -> Result<()> {
    let mut raised = 0;
    for status in masters {
        let name = status.member.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        for alarm in &status.alarms {
            raised += 1;
            let when = Timestamp::from_second(i64::try_from(alarm.since).unwrap_or_default());
            let when = when.map(|it| it.to_string()).unwrap_or_default();
            println!("ALARM {name} {} since {when}: {}", alarm.kind, alarm.reason);
        }
    }
    match raised {
        0 => Ok(()),
        1 => bail!("there is an alarm"),
        more => bail!("there are {more} alarms"),
    }
}

fn line(status: &MasterStatus) -> String {
    let member = status.member.clone().unwrap_or_default();
    if !status.error.is_empty() {
        return format!("{:<12} {:<8} {}", member.name, "-", status.error);
    }
    let mb = |bytes: u64| format!("{} MB", bytes / 1_000_000);
    let memory = mb(status.resident_bytes);
    let (log, store, free) = (mb(status.log_bytes), mb(status.objects_bytes), mb(status.free_bytes));
    format!(
        "{:<12} {:<8} {:>6} {:>10} {:>10} {:>9} {memory:>8} {log:>8} {store:>8} {free:>9}  {}",
        member.name,
        role_of(&member),
        status.term,
        status.revision,
        status.applied_index,
        status.objects,
        status.version
    )
}

fn compare(masters: &[MasterStatus]) -> Result<()> {
    let digests = masters.iter().filter(|m| m.error.is_empty());
    let mut different = std::collections::BTreeSet::new();
    for status in digests {
        let hex: String = status.digest.iter().map(|b| format!("{b:02x}")).collect();
        let name = status.member.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        println!("{name:<12} revision {} digest {hex}", status.revision);
        different.insert((status.revision, hex));
    }
    if different.len() > 1 {
        bail!("the masters hold different states");
    }
    Ok(())
}
