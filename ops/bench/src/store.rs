//! Durable writes: three Ephor stores and three etcd members, each a process,
//! TLS between all, data on the same disk, asked through the same gRPC call,
//! one after the other so that neither takes the other's processor time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use proto_env::{Network, TlsNetwork};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::etcd::Client;
use crate::pki;
use crate::timing::{Figures, Operation, drive, report};

const MEMBERS: usize = 3;
const CLIENTS: [usize; 3] = [1, 64, 256];

/// Three processes, killed when this is dropped, and where clients find them.
struct Group {
    _processes: Vec<Child>,
    addresses: Vec<String>,
}

/// Measures both and prints the report.
pub async fn run(etcd: Option<PathBuf>, directory: &Path, span: Duration, value_bytes: usize) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("ephor-bench-").tempdir_in(directory)?;
    pki::make(directory.path())?;
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::new(&pki::load(directory.path())?)?);
    let mut lines: Vec<Vec<(&str, Figures)>> = vec![vec![]; CLIENTS.len()];
    for side in ["ephor", "etcd"] {
        let group = match (side, &etcd) {
            ("ephor", _) => ephor(directory.path()).await?,
            (_, Some(binary)) => start_etcd(binary, directory.path())?,
            _ => continue,
        };
        println!("{side}: {MEMBERS} members at {}", group.addresses.join(", "));
        ready(&network, &group).await?;
        for (line, clients) in CLIENTS.into_iter().enumerate() {
            lines[line].push((side, measure(&network, &group, clients, span, value_bytes).await?));
        }
    }
    println!("durable writes of {value_bytes} bytes, {}", machine());
    for (line, clients) in CLIENTS.into_iter().enumerate() {
        report(&format!("put, {clients} clients"), &lines[line]);
    }
    Ok(())
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{processors} processors, load {}", load.split(' ').next().unwrap_or_default())
}

async fn measure(
    network: &Arc<dyn Network>,
    group: &Group,
    clients: usize,
    span: Duration,
    value_bytes: usize,
) -> Result<Figures> {
    let connections = group
        .addresses
        .iter()
        .map(|address| Client::new(network.clone(), address))
        .collect::<Result<Vec<_>>>()?;
    drive(clients, span, |number| -> Operation {
        // Clients spread over the members, as those of an API server would.
        let client = connections[number % connections.len()].clone();
        let value = vec![b'v'; value_bytes];
        Box::new(move |count| {
            let (client, value) = (client.clone(), value.clone());
            async move { client.put(format!("/bench/{clients}/{number}/{count}"), value).await }.boxed()
        })
    })
    .await
}

/// Waits until every member takes writes.
async fn ready(network: &Arc<dyn Network>, group: &Group) -> Result<()> {
    for address in &group.addresses {
        let attempt = async {
            loop {
                let client = Client::new(network.clone(), address)?;
                match client.put("/bench/ready".to_owned(), vec![1]).await {
                    Ok(()) => return anyhow::Ok(()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), attempt).await.context("members do not come up")??;
    }
    Ok(())
}

fn free_addresses(count: usize) -> Result<Vec<String>> {
    // All held until all are known, so that none is given twice.
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    Ok(held
        .iter()
        .map(|listener| listener.local_addr().map(|it| it.to_string()))
        .collect::<Result<_, _>>()?)
}

async fn ephor(directory: &Path) -> Result<Group> {
    let peers = free_addresses(MEMBERS)?;
    let addresses = free_addresses(MEMBERS)?;
    let member = |position: usize, id: &str, add: &[String]| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", "--id", id, "--peer", &peers[position], "--client", &addresses[position]]);
        command.arg("--pki").arg(directory).arg("--data").arg(directory.join(format!("ephor-{position}")));
        for peer in add {
            command.args(["--add", peer]);
        }
        let child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        anyhow::Ok(child)
    };
    let mut first = member(0, "1", &peers[1..])?;
    let output = first.stdout.take().context("no output")?;
    let mut ids = BufReader::new(output).lines();
    let mut processes = vec![first];
    for position in 1..MEMBERS {
        let id = ids.next_line().await?.context("the first member ended")?;
        processes.push(member(position, &id, &[])?);
    }
    Ok(Group { _processes: processes, addresses })
}

fn start_etcd(binary: &Path, directory: &Path) -> Result<Group> {
    let peers = free_addresses(MEMBERS)?;
    let addresses = free_addresses(MEMBERS)?;
    let url = |address: &String| format!("https://{address}");
    let cluster: Vec<String> =
        peers.iter().enumerate().map(|(number, peer)| format!("m{number}={}", url(peer))).collect();
    let mut processes = Vec::new();
    for number in 0..MEMBERS {
        let mut command = Command::new(binary);
        command.args(["--name", &format!("m{number}")]);
        command.arg("--data-dir").arg(directory.join(format!("etcd-{number}")));
        command.args(["--initial-cluster", &cluster.join(",")]);
        for (flag, address) in [
            ("--listen-peer-urls", &peers[number]),
            ("--initial-advertise-peer-urls", &peers[number]),
            ("--listen-client-urls", &addresses[number]),
            ("--advertise-client-urls", &addresses[number]),
        ] {
            command.args([flag, &url(address)]);
        }
        for (flag, file) in [
            ("--cert-file", "cert.pem"),
            ("--key-file", "key.pem"),
            ("--trusted-ca-file", "ca.pem"),
            ("--peer-cert-file", "cert.pem"),
            ("--peer-key-file", "key.pem"),
            ("--peer-trusted-ca-file", "ca.pem"),
        ] {
            command.arg(flag).arg(directory.join(file));
        }
        command.args(["--client-cert-auth", "--peer-client-cert-auth", "--log-level", "error"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        processes.push(command.spawn().with_context(|| format!("starting {}", binary.display()))?);
    }
    Ok(Group { _processes: processes, addresses })
}
