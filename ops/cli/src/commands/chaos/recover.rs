//! `ephor chaos recover`: asks every agent to undo all faults. Needs no running
//! master when the agents are known: named, or listed beside the kubeconfig.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use chaos_live::access::Access;
use chaos_live::cluster::Cluster;
use clap::Args;

use super::AgentPlaces;

/// Undo all faults on all nodes, whichever run injected them
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    agents: AgentPlaces,
}

/// Runs `ephor chaos recover`.
pub async fn run(arguments: RecoverArgs) -> Result<()> {
    let kubeconfig = super::kubeconfig(arguments.kubeconfig);
    let access = Access::new(&crate::kubeconfig::material(&kubeconfig)?)?;
    let known = arguments.agents.all(&kubeconfig)?;
    let port = arguments.agents.agent_port;
    let found = found(&access, &kubeconfig, port).await;
    let mut places: BTreeMap<String, String> = match found {
        Ok(places) => places,
        Err(error) if known.is_empty() => {
            return Err(error).context(
                "the addresses of the agents could not be read from a master; hint: give --agent NAME=HOST",
            );
        }
        Err(_) => BTreeMap::new(),
    };
    for (name, place) in known {
        let with_port = place.parse::<std::net::SocketAddr>().map(|place| place.to_string());
        places.insert(name, with_port.unwrap_or_else(|_| format!("{place}:{port}")));
    }
    let mut silent = Vec::new();
    for (name, place) in &places {
        match access.agent(place)?.undo(Vec::new(), false).await {
            Ok(undone) if undone.is_empty() => println!("{name:<6} nothing to undo"),
            Ok(undone) => {
                for fault in undone {
                    let how = if fault.error.is_empty() { "undone".to_owned() } else { fault.error.clone() };
                    println!("{name:<6} {}: {how}", fault.id);
                    if !fault.error.is_empty() {
                        silent.push(name.clone());
                    }
                }
            }
            Err(error) => {
                println!("{name:<6} {place}: {error}");
                silent.push(name.clone());
            }
        }
    }
    ensure!(
        silent.is_empty(),
        "some faults are not undone on {}; hint: run `ephor chaos agent --recover` on the node itself",
        silent.join(", ")
    );
    Ok(())
}

async fn found(access: &Access, kubeconfig: &std::path::Path, port: u16) -> Result<BTreeMap<String, String>> {
    let client = crate::kubeconfig::client(kubeconfig, None).await?;
    let peers = crate::admin::masters(&client);
    let peers = tokio::time::timeout(std::time::Duration::from_secs(5), peers).await??;
    let cluster = Cluster::discover(access.clone(), &peers, port, &BTreeMap::new()).await?;
    Ok(cluster.agents.iter().map(|(node, agent)| (node.to_string(), agent.address().to_owned())).collect())
}
