//! `ephor status`: shows the state of every master and its alarms, and fails when there are
//! alarms; `--digest` compares the masters' states at one revision and fails when they differ.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use proto_env::CertificateInfo;
use proto_wire::cluster::{MasterStatus, StatusRequest};

use super::members::role_of;
use crate::admin;

/// Maximum number of nodes whose certificates are shown.
const NODES_SHOWN: usize = 20;

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
    for line in node_certificates(masters, &date) {
        println!("{line}");
    }
    let own = CertificateInfo::from_pem(&crate::kubeconfig::material(kubeconfig)?.certificate_pem)?;
    let end = own.not_after.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    println!("certificate of {} ends: {}", kubeconfig.display(), date(end));
    if SystemTime::now() >= own.renew_at() {
        println!("  renew it on a master: ephor kubeconfig --output FILE");
    }
    Ok(())
}

/// Returns a line for each of the nodes whose certificates end first, and one that counts the others.
fn node_certificates(masters: &[MasterStatus], date: &impl Fn(u64) -> String) -> Vec<String> {
    // More than one master may have heard a node: the latest certificates are those that it has.
    let mut latest: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for node in masters.iter().flat_map(|status| &status.nodes) {
        let known = latest.entry(&node.node).or_default();
        for certificate in &node.certificates {
            let end = known.entry(&certificate.name).or_default();
            *end = certificate.not_after.max(*end);
        }
    }
    let mut nodes: Vec<_> = latest.into_iter().collect();
    nodes.sort_by_key(|(_, certificates)| certificates.values().min().copied());
    let others = nodes.split_off(nodes.len().min(NODES_SHOWN));
    let lines = nodes.into_iter().map(|(node, certificates)| {
        let ends = certificates.into_iter().map(|(name, end)| format!("{name} {}", date(end)));
        format!("certificates (node {node}) end: {}", ends.collect::<Vec<_>>().join(", "))
    });
    let more = (!others.is_empty()).then(|| format!("certificates of {} more nodes end later", others.len()));
    lines.chain(more).collect()
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

#[cfg(test)]
mod tests {
    use proto_wire::cluster::{Certificate, NodeCertificates};

    use super::*;

    fn node(node: &str, client: u64, serving: u64) -> NodeCertificates {
        let certificate = |name: &str, not_after| Certificate { name: name.to_owned(), not_after };
        let certificates = vec![certificate("client", client), certificate("serving", serving)];
        NodeCertificates { node: node.to_owned(), certificates }
    }

    #[test]
    fn nodes_are_shown_once_with_their_newest_certificates_and_the_first_to_end_come_first() {
        // The follower heard w1 before it renewed its certificates.
        let leader =
            MasterStatus { nodes: vec![node("w1", 90, 91), node("w2", 80, 80)], ..Default::default() };
        let follower = MasterStatus { nodes: vec![node("w1", 50, 51)], ..Default::default() };
        let lines = node_certificates(&[follower, leader], &|end| end.to_string());
        assert_eq!(
            lines,
            [
                "certificates (node w2) end: client 80, serving 80",
                "certificates (node w1) end: client 90, serving 91"
            ]
        );
        let many = (0..NODES_SHOWN as u64 + 2).map(|n| node(&format!("w{n}"), n, n)).collect();
        let lines =
            node_certificates(&[MasterStatus { nodes: many, ..Default::default() }], &|_| String::new());
        assert_eq!(lines.len(), NODES_SHOWN + 1);
        assert_eq!(lines[NODES_SHOWN], "certificates of 2 more nodes end later");
    }
}
