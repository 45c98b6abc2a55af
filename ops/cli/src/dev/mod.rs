//! `ephor dev`: a whole cluster on one machine, each node in namespaces of its
//! own. Without a subcommand it brings the cluster up and stays until Ctrl-C,
//! then takes it down; `up` leaves it running.
//!
//! `layout.rs` defines names and addresses, `namespace.rs`, `bridge.rs` and `process.rs`
//! create and remove single resources, `up.rs` and `down.rs` call them in order.

pub mod balancer;
pub mod bridge;
pub mod chaos;
pub mod down;
pub mod layout;
pub mod namespace;
pub mod process;
pub mod up;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use layout::{DevNode, Layout, MAX_SPARES, MAX_WORKERS};

/// Run a whole cluster on this machine
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Directory of the cluster's data, logs and kubeconfig
    #[arg(long, global = true, default_value = "/var/lib/ephor-dev", env = "EPHOR_DEV_ROOT")]
    root: PathBuf,
    #[command(flatten)]
    size: Size,
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Debug, Clone, Args)]
struct Size {
    /// Number of masters: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3)]
    masters: u8,
    /// Number of workers
    #[arg(long, default_value_t = 2)]
    workers: u8,
    /// Port on 127.0.0.1 of the load balancer in front of the masters
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
    /// Image archive (OCI layout or docker save) to load on every worker; may be repeated
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Run a chaos agent on every node and every master on a disk that can fail, for `ephor chaos run --live`
    #[arg(long)]
    chaos: bool,
    /// Number of spare machines, which run an agent only, for masters that join during an experiment
    #[arg(long, default_value_t = 0, requires = "chaos")]
    spare_masters: u8,
    /// Lifetime of the certificates of masters and nodes; a short one shows renewals [default: 365d]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    certificate_lifetime: Option<std::time::Duration>,
    /// How long ServiceAccount tokens live at most, to see them renewed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    service_account_max_token_expiration: Option<std::time::Duration>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Start the cluster and leave it running
    Up(Size),
    /// Stop the cluster and remove everything it left on this machine
    Down,
    /// List the nodes with their addresses and process ids
    Ps,
    /// Start the stopped process or chaos agent of a node
    Start {
        /// Name of a node (m1, w1) or of its chaos agent (m1-chaos)
        node: String,
        /// Let a master that has lost its data join the cluster again in its own place
        #[arg(long)]
        rejoin: bool,
    },
    /// Stop or pause the process or chaos agent of a node
    Stop {
        /// Name of a node (m1, w1) or of its chaos agent (m1-chaos)
        node: String,
        /// Signal to send: term is SIGTERM, kill is SIGKILL, pause is SIGSTOP
        #[arg(long, value_enum, default_value_t = StopSignal::Term)]
        how: StopSignal,
    },
    /// Resume a paused node
    Resume {
        /// Name of a node, such as m1 or w1
        node: String,
    },
    /// Take a node's network link up or down
    Link {
        /// Name of a node, such as m1 or w1
        node: String,
        /// State of the link
        #[arg(value_enum)]
        state: LinkState,
    },
    /// Run a command in the namespaces of a node
    Exec {
        /// Name of a node, such as m1 or w1
        node: String,
        /// Command to run and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Hold new namespaces until the input ends (used by `up`)
    #[command(hide = true)]
    Hold,
    /// Balance the API port over the masters (used by `up`)
    #[command(hide = true)]
    Balancer,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StopSignal {
    Term,
    Kill,
    Pause,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkState {
    Up,
    Down,
}

/// Runs the command. `hold` and `exec` must run before any thread exists,
/// which is why this starts the runtime itself where it needs one.
pub fn run(arguments: DevArgs) -> Result<()> {
    let root = &arguments.root;
    match arguments.command {
        Some(DevCommand::Hold) => namespace::hold(),
        Some(DevCommand::Exec { node, command }) => namespace::exec(&node_of(root, &node)?, &command),
        Some(DevCommand::Up(size)) => in_runtime(up_checked(root, &size)),
        Some(DevCommand::Down) => in_runtime(down::down(root)),
        Some(DevCommand::Balancer) => in_runtime(balancer::run(existing(root)?)),
        Some(DevCommand::Ps) => ps(&existing(root)?),
        Some(DevCommand::Start { node, rejoin }) => {
            let layout = existing(root)?;
            match node.strip_suffix(chaos::AGENT_SUFFIX) {
                Some(node) => chaos::start_agent(&layout, &node_in(&layout, node)?),
                None if rejoin => {
                    in_runtime(async move { up::rejoin_node(&layout, &node_in(&layout, &node)?).await })
                }
                None => in_runtime(async move { up::start_node(&layout, &node_in(&layout, &node)?).await }),
            }
        }
        Some(DevCommand::Stop { node, how }) => {
            node_of(root, node.strip_suffix(chaos::AGENT_SUFFIX).unwrap_or(&node))?;
            stop(&node, how)
        }
        Some(DevCommand::Resume { node }) => {
            let node = node_of(root, &node)?;
            ensure!(process::signal(&node.name, Signal::SIGCONT)?, "{} does not run", node.name);
            Ok(())
        }
        Some(DevCommand::Link { node, state }) => {
            bridge::set_link(&node_of(root, &node)?, matches!(state, LinkState::Up))
        }
        None => in_runtime(foreground(root.clone(), arguments.size)),
    }
}

fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn existing(root: &std::path::Path) -> Result<Layout> {
    Layout::load(root)?
        .with_context(|| format!("no dev cluster in {}; start one with `ephor dev up`", root.display()))
}

fn node_in(layout: &Layout, name: &str) -> Result<DevNode> {
    layout.node(name).with_context(|| {
        let names: Vec<String> = layout.nodes().into_iter().map(|n| n.name).collect();
        format!("there is no node {name}; the nodes are {}", names.join(", "))
    })
}

fn node_of(root: &std::path::Path, name: &str) -> Result<DevNode> {
    node_in(&existing(root)?, name)
}

fn layout_for(root: &std::path::Path, size: &Size) -> Result<Layout> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "`ephor dev` needs root: it makes network and mount namespaces, a bridge, cgroups and nftables rules \
         (try sudo)"
    );
    ensure!(
        size.masters % 2 == 1 && size.masters <= 7,
        "{} masters asked for: the number must be odd and at most 7 (an even set survives no more failures \
         than the next smaller odd one)",
        size.masters
    );
    ensure!(size.workers <= MAX_WORKERS, "at most {MAX_WORKERS} workers fit the address plan");
    ensure!(size.spare_masters <= MAX_SPARES, "at most {MAX_SPARES} spare machines fit the address plan");
    Ok(Layout {
        root: root.to_owned(),
        masters: size.masters,
        workers: size.workers,
        api_port: size.api_port,
        chaos: size.chaos,
        spares: size.spare_masters,
        certificate_lifetime: size.certificate_lifetime.map(|lifetime| lifetime.as_secs()),
        max_token_expiration: size.service_account_max_token_expiration.map(|longest| longest.as_secs()),
    })
}

async fn up_checked(root: &std::path::Path, size: &Size) -> Result<()> {
    let layout = layout_for(root, size)?;
    up::up(&layout, &size.images).await
}

async fn foreground(root: PathBuf, size: Size) -> Result<()> {
    let layout = layout_for(&root, &size)?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let outcome = tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
        result = async {
            up::up(&layout, &size.images).await?;
            eprintln!("The cluster runs until Ctrl-C.");
            std::future::pending::<Result<()>>().await
        } => result,
    };
    eprintln!("Taking the cluster down ...");
    down::down(&root).await?;
    outcome
}

fn stop(name: &str, how: StopSignal) -> Result<()> {
    match how {
        StopSignal::Term => process::stop(name, std::time::Duration::from_secs(10)),
        StopSignal::Kill => process::kill_now(name),
        StopSignal::Pause => {
            ensure!(process::signal(name, Signal::SIGSTOP)?, "{name} does not run");
            Ok(())
        }
    }
}

fn ps(layout: &Layout) -> Result<()> {
    println!("{:<6} {:<8} {:<16} PID", "NAME", "ROLE", "ADDRESS");
    for node in layout.nodes() {
        let role = format!("{:?}", node.role).to_lowercase();
        let pid = process::running(&node.name).map_or("-".into(), |p| p.to_string());
        println!("{:<6} {role:<8} {:<16} {pid}", node.name, node.address);
    }
    Ok(())
}
