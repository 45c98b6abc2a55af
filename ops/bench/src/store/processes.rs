//! Starts the members of either side: command lines, ports, files. Both use their
//! defaults except for directories and identities.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Setup;
use super::group::MEMBERS;

/// Lowest port for members: the range lies below the ports that the kernel gives to
/// outgoing connections, which could otherwise occupy the port of a member
/// that is down.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 32_000;
/// Deadline for the first member to print the ids of the others.
const IDS_TIMEOUT: Duration = Duration::from_secs(60);

/// Command that starts a member, and its files.
pub struct MemberCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Additional arguments for the first start only.
    founding: Vec<OsString>,
    /// Address of the member for clients.
    pub address: String,
    /// Directory of its data.
    pub data: PathBuf,
    /// File with its standard error.
    pub log: PathBuf,
}

impl MemberCommand {
    fn spawn(&self, arguments: &[OsString], output: Stdio) -> Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(arguments);
        command.stdin(Stdio::null()).stdout(output).stderr(log).kill_on_drop(true);
        command.spawn().with_context(|| format!("starting {}", self.program.display()))
    }

    /// Restarts the member on its existing data.
    pub fn spawn_again(&self) -> Result<Child> {
        self.spawn(&[], Stdio::null())
    }
}

/// Starts three Ephor stores: the first creates the cluster and adds the others.
pub async fn ephor(setup: &Setup, directory: &Path) -> Result<Vec<(MemberCommand, Child)>> {
    let (peers, addresses) = (free_addresses(MEMBERS)?, free_addresses(MEMBERS)?);
    let recipe = |position: usize, id: &str| {
        let data = directory.join(format!("data-{position}"));
        let arguments = [
            "member".into(),
            "--id".into(),
            id.into(),
            "--pki".into(),
            setup.directory.path().into(),
            "--data".into(),
            data.clone().into(),
            "--peer".into(),
            (&peers[position]).into(),
            "--client".into(),
            (&addresses[position]).into(),
            "--timers".into(),
            setup.timers.to_string().into(),
        ];
        let add = peers[1..].iter().flat_map(|peer| ["--add".into(), peer.into()]);
        anyhow::Ok(MemberCommand {
            program: std::env::current_exe()?,
            arguments: arguments.into(),
            founding: if position == 0 { add.collect() } else { Vec::new() },
            address: addresses[position].clone(),
            data,
            log: directory.join(format!("log-{position}")),
        })
    };
    let first = recipe(0, &consensus::FIRST_NODE_ID.to_string())?;
    let mut process = first.spawn(&first.founding, Stdio::piped())?;
    let output = process.stdout.take().context("no output")?;
    let mut ids = BufReader::new(output).lines();
    let mut started = vec![(first, process)];
    for position in 1..MEMBERS {
        let id = tokio::time::timeout(IDS_TIMEOUT, ids.next_line());
        let id = id.await.context("the first member adds nobody")??.context("the first member ended")?;
        let recipe = recipe(position, &id)?;
        let process = recipe.spawn_again()?;
        started.push((recipe, process));
    }
    Ok(started)
}

/// Starts three etcd members.
pub fn etcd(setup: &Setup, directory: &Path) -> Result<Vec<(MemberCommand, Child)>> {
    let binary = setup.etcd.as_ref().context("no etcd")?;
    let (peers, addresses) = (free_addresses(MEMBERS)?, free_addresses(MEMBERS)?);
    let url = |address: &String| format!("https://{address}");
    let cluster: Vec<String> =
        peers.iter().enumerate().map(|(number, peer)| format!("m{number}={}", url(peer))).collect();
    let start = |number: usize| {
        let data = directory.join(format!("data-{number}"));
        let mut arguments: Vec<OsString> = vec!["--name".into(), format!("m{number}").into()];
        arguments.extend(["--data-dir".into(), data.clone().into()]);
        arguments.extend(["--initial-cluster".into(), cluster.join(",").into()]);
        for (flag, address) in [
            ("--listen-peer-urls", &peers[number]),
            ("--initial-advertise-peer-urls", &peers[number]),
            ("--listen-client-urls", &addresses[number]),
            ("--advertise-client-urls", &addresses[number]),
        ] {
            arguments.extend([flag.into(), url(address).into()]);
        }
        for (flag, file) in [
            ("--cert-file", "cert.pem"),
            ("--key-file", "key.pem"),
            ("--trusted-ca-file", "ca.pem"),
            ("--peer-cert-file", "cert.pem"),
            ("--peer-key-file", "key.pem"),
            ("--peer-trusted-ca-file", "ca.pem"),
        ] {
            arguments.extend([flag.into(), setup.directory.path().join(file).into()]);
        }
        let fixed = ["--client-cert-auth", "--peer-client-cert-auth", "--log-level", "error"];
        arguments.extend(fixed.map(OsString::from));
        let recipe = MemberCommand {
            program: binary.clone(),
            arguments,
            founding: Vec::new(),
            address: addresses[number].clone(),
            data,
            log: directory.join(format!("log-{number}")),
        };
        let process = recipe.spawn_again()?;
        Ok((recipe, process))
    };
    (0..MEMBERS).map(start).collect()
}

fn free_addresses(count: usize) -> Result<Vec<String>> {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let mut addresses = Vec::new();
    while addresses.len() < count {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        anyhow::ensure!(port < LAST_PORT, "no free port from {FIRST_PORT} to {LAST_PORT}");
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
