//! Brings a dev cluster up, step by step, and prints each step. Every step can be
//! repeated: `up` after a crash continues where it stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, Client};
use master_node::pki::DEFAULT_LIFETIME;
use proto_env::SystemDisk;

use super::layout::{DevNode, Layout, Milestone, Role};
use super::{bridge, chaos, namespace, process};
use crate::commands::image;
use crate::commands::token::{self, TokenRole};
use crate::kubeconfig;
use crate::progress::Steps;

/// Deadline of one step on a slow machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Lifetime of the join tokens of a dev cluster.
const TOKEN_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Lifetime of the token for a node that joins again, which is used at once.
const REJOIN_LIFETIME: Duration = Duration::from_secs(3600);
/// The master on which the cluster is created.
const FIRST_MASTER: &str = "m1";

/// Starts all nodes and waits until every node is ready.
pub async fn up(layout: &Layout, images: &[PathBuf]) -> Result<()> {
    let mut steps = Steps::new();
    layout.store()?;
    if layout.chaos {
        // Before the namespaces, since a namespace sees only mounts made before it.
        steps.run("disks that can fail", chaos::mount_disks(layout)).await?;
    }
    steps.run("namespaces and links", async { wire(layout) }).await?;
    let nodes = layout.nodes();
    let of = |role: Role| nodes.iter().filter(move |n| n.role == role).collect::<Vec<_>>();
    let (masters, workers) = (of(Role::Master), of(Role::Worker));
    let first = masters.first().context("a cluster needs a master")?;
    let client = steps.run("first master", first_master(layout, first)).await?;
    steps.run("join tokens", tokens(layout, &client)).await?;
    let label = format!("{} more masters", masters.len() - 1);
    steps.run(&label, more_masters(layout, &client, &masters)).await?;
    if layout.chaos {
        steps.run("chaos agents", async { chaos::start_agents(layout, first) }).await?;
    }
    steps.run("balancer", balancer(layout)).await?;
    let label = format!("{} workers", workers.len());
    steps.run(&label, start_workers(layout, &client, &workers)).await?;
    layout.reached(Milestone::Complete)?;
    for file in images {
        let label = format!("image {}", file.display());
        steps.run(&label, load_image(layout, file, &workers)).await?;
    }
    println!("kubeconfig: {}", layout.kubeconfig().display());
    Ok(())
}

fn wire(layout: &Layout) -> Result<()> {
    bridge::create_bridge()?;
    for node in layout.nodes() {
        namespace::create(&node).with_context(|| format!("the namespaces of {}", node.name))?;
        bridge::attach(&node).with_context(|| format!("the link of {}", node.name))?;
    }
    Ok(())
}

/// Starts one node's process, for the first time or again.
pub async fn start_node(layout: &Layout, node: &DevNode) -> Result<()> {
    spawn(layout, node, &arguments(layout, node)?)
}

/// Starts a node that has lost its data: it joins in place of the former node of that name.
pub async fn rejoin_node(layout: &Layout, node: &DevNode) -> Result<()> {
    let data = layout.data_dir(node);
    ensure!(
        !data.join("pki").exists(),
        "{} has its data, in {}: start it as it is",
        node.name,
        data.display()
    );
    let client = kubeconfig::client(&layout.kubeconfig(), None).await?;
    let ca = kubeconfig::ca_of(&layout.kubeconfig())?;
    let (role, only) = match node.role {
        Role::Master | Role::Spare => (TokenRole::Master, None),
        Role::Worker => (TokenRole::Worker, Some(&node.name[..])),
    };
    let token = token::create(&client, &ca, role, only, REJOIN_LIFETIME, "ephor dev").await?;
    let mut arguments = steady_arguments(layout, node);
    arguments.extend(join_arguments(layout, node, &token.to_string()));
    if node.role == Role::Master {
        arguments.extend(["--replace".into(), node.name.clone()]);
    }
    spawn(layout, node, &arguments)
}

fn spawn(layout: &Layout, node: &DevNode, arguments: &[String]) -> Result<()> {
    process::spawn_node(layout, node, arguments)?;
    if chaos::has_certificate(layout, node) { chaos::start_agent(layout, node) } else { Ok(()) }
}

/// Returns the arguments for starting a node that has joined.
pub fn steady_arguments(layout: &Layout, node: &DevNode) -> Vec<String> {
    let data = layout.data_dir(node);
    let mut arguments: Vec<String> = match node.role {
        Role::Master | Role::Spare => {
            vec!["master".into(), "--advertise-address".into(), node.address.to_string()]
        }
        Role::Worker => vec!["worker".into(), "--address".into(), node.address.to_string()],
    };
    arguments.extend(["--name".into(), node.name.clone()]);
    arguments.extend(["--data-dir".into(), data.to_string_lossy().into_owned()]);
    if node.role == Role::Worker {
        arguments.extend(["--run-dir".into(), layout.run_dir(node).to_string_lossy().into_owned()]);
        arguments.extend(["--cgroup-root".into(), node.cgroup_root()]);
        let registry = format!("{}:5000", Layout::host_address());
        arguments.extend(["--insecure-registry".into(), registry]);
    } else {
        arguments.extend(["--masters".into(), layout.masters.to_string()]);
        if let Some(seconds) = layout.certificate_lifetime {
            arguments.extend(["--certificate-lifetime".into(), format!("{seconds}s")]);
        }
        if let Some(seconds) = layout.max_token_expiration {
            arguments.extend(["--service-account-max-token-expiration".into(), format!("{seconds}s")]);
        }
    }
    arguments
}

/// Returns the arguments for starting a node: with those for joining when it has no data yet.
fn arguments(layout: &Layout, node: &DevNode) -> Result<Vec<String>> {
    let mut arguments = steady_arguments(layout, node);
    let data = layout.data_dir(node);
    if data.join("pki").exists() {
        return Ok(arguments);
    }
    let is_first = node.role == Role::Master && node.name == FIRST_MASTER;
    if is_first || (layout.has_reached(Milestone::Complete) && node.role != Role::Spare) {
        bail!(
            "{} has lost its data ({} is empty): let it take its place again with `ephor dev start {} --rejoin`",
            node.name,
            data.display(),
            node.name
        );
    }
    let token = std::fs::read_to_string(token_file(layout, node.role))?;
    arguments.extend(join_arguments(layout, node, token.trim()));
    Ok(arguments)
}

fn join_arguments(layout: &Layout, node: &DevNode, token: &str) -> [String; 4] {
    let join: Vec<String> = others(layout, node).map(|n| format!("{}:6444", n.address)).collect();
    ["--join".into(), join.join(","), "--token".into(), token.into()]
}

fn others<'a>(layout: &'a Layout, node: &'a DevNode) -> impl Iterator<Item = DevNode> + 'a {
    layout.nodes().into_iter().filter(|n| n.role == Role::Master && n.name != node.name)
}

/// Creates the cluster, unless an earlier `up` has done so.
fn create_cluster(layout: &Layout, first: &DevNode) -> Result<()> {
    if layout.has_reached(Milestone::Created) {
        return Ok(());
    }
    // An interrupted `up` may have created it already.
    if !layout.data_dir(first).join("node.json").exists() {
        let mut arguments = steady_arguments(layout, first);
        arguments.push("--init".into());
        process::run_on_node(layout, first, &arguments)?;
    }
    layout.reached(Milestone::Created)
}

async fn first_master(layout: &Layout, node: &DevNode) -> Result<Client> {
    create_cluster(layout, node)?;
    start_node(layout, node).await?;
    let data = layout.data_dir(node);
    let server = format!("https://127.0.0.1:{}", layout.api_port);
    kubeconfig::write_admin(&data, &server, DEFAULT_LIFETIME, &layout.kubeconfig())?;
    let direct = format!("https://{}:6443", node.address);
    let client = kubeconfig::client(&layout.kubeconfig(), Some(&direct)).await?;
    let services = Api::<Service>::namespaced(client.clone(), "default");
    until(&node.name, layout, async || Ok(matches!(services.get_opt("kubernetes").await, Ok(Some(_)))))
        .await?;
    Ok(client)
}

fn token_file(layout: &Layout, role: Role) -> PathBuf {
    layout.root.join(match role {
        Role::Master | Role::Spare => "master.token",
        Role::Worker => "worker.token",
    })
}

async fn tokens(layout: &Layout, client: &Client) -> Result<()> {
    let ca = kubeconfig::ca_of(&layout.kubeconfig())?;
    for (role, token_role) in [(Role::Master, TokenRole::Master), (Role::Worker, TokenRole::Worker)] {
        let file = token_file(layout, role);
        if !file.exists() {
            let token = token::create(client, &ca, token_role, None, TOKEN_LIFETIME, "ephor dev").await?;
            master_node::pki::files::write_private(&SystemDisk, &file, token.to_string().as_bytes())?;
        }
    }
    Ok(())
}

async fn more_masters(layout: &Layout, client: &Client, masters: &[&DevNode]) -> Result<()> {
    for node in masters.iter().skip(1) {
        start_node(layout, node).await?;
    }
    let wanted = masters.len();
    until("the masters", layout, async || {
        let members = crate::admin::members(client, &layout.kubeconfig()).await;
        Ok(members.is_ok_and(|m| m.members.iter().filter(|m| m.voter).count() == wanted))
    })
    .await
}

/// Starts the balancer, and waits until the printed kubeconfig works.
async fn balancer(layout: &Layout) -> Result<()> {
    let root = layout.root.to_string_lossy().into_owned();
    process::spawn(layout, process::BALANCER, &["dev".into(), "--root".into(), root, "balancer".into()])?;
    let client = kubeconfig::client(&layout.kubeconfig(), None).await?;
    until("the balancer", layout, async || Ok(client.apiserver_version().await.is_ok())).await
}

async fn start_workers(layout: &Layout, client: &Client, workers: &[&DevNode]) -> Result<()> {
    for node in workers {
        start_node(layout, node).await?;
    }
    let nodes = Api::<Node>::all(client.clone());
    until("the workers", layout, async || {
        let Ok(list) = nodes.list(&kube::api::ListParams::default()).await else { return Ok(false) };
        Ok(list.items.iter().filter(|n| is_ready(n)).count() == workers.len())
    })
    .await
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn load_image(layout: &Layout, file: &Path, workers: &[&DevNode]) -> Result<()> {
    for node in workers {
        image::load_into(&layout.cri_socket(node), file).await?;
    }
    Ok(())
}

/// Waits for a condition; on timeout or when the process has ended, the error names its log file.
async fn until(what: &str, layout: &Layout, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + STEP_TIMEOUT;
    while !condition().await? {
        if let Some(node) = layout.node(what)
            && process::running(&node.name).is_none()
        {
            bail!("{what} ended; see {}", layout.log_file(what).display());
        }
        if Instant::now() >= end {
            bail!(
                "{what} not ready after {} s; see {}",
                STEP_TIMEOUT.as_secs(),
                layout.root.join("logs").display()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
