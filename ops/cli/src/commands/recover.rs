//! `ephor recover --from-this-node`: makes a writable cluster from one master after a
//! majority was lost for good. `master_node::recover` implements it.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use clap::Args;
use master_node::recover::{MasterReply, Survivor};
use proto_env::{CancellationToken, Env, TlsNetwork};

/// Make the master of this machine a cluster of one, after a majority was lost for good
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Use the data of this machine's master, which must be stopped; required
    #[arg(long, required = true)]
    from_this_node: bool,
    /// Data directory of the master
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    data_dir: PathBuf,
    /// Peer address at which another master may be reachable now, to be asked too; may be repeated
    #[arg(long = "peers", value_name = "HOST:PORT", value_delimiter = ',')]
    peers: Vec<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Runs `ephor recover`.
pub async fn run(arguments: RecoverArgs) -> Result<()> {
    ensure!(arguments.from_this_node, "give --from-this-node");
    let data_dir = arguments.data_dir.display();
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    let survivor = Survivor::open(&arguments.data_dir, env)?;
    if survivor.begun() {
        println!("Continuing the unfinished recovery of {data_dir}.");
    } else {
        show(&survivor, &arguments);
        let asked = survivor.ask(&arguments.peers).await?;
        for MasterReply { member, answered, error } in &asked {
            let state = if *answered { "answers" } else { error };
            let role = if member.voter { "voter" } else { "learner" };
            println!("  {} (id {}, {role}, {}): {state}", member.name, member.id, member.peer_address);
        }
        confirm(arguments.yes)?;
    }
    let old = survivor.found().identity.clone();
    let new = survivor.recover().await?;
    println!(
        "Recovered: {data_dir} is master id {} of the new cluster {}.\n\
         Start it: ephor master --data-dir {data_dir} --advertise-address ADDRESS, with its other flags as before.\n\
         Then add other masters, with empty data directories: ephor members add.\n\
         Members of the old cluster {} that come back are refused and stop.",
        new.node_id, new.cluster_id, old.cluster_id
    );
    Ok(())
}

fn show(survivor: &Survivor, arguments: &RecoverArgs) {
    let found = survivor.found();
    let name = found.members.iter().find(|m| m.id == found.identity.node_id).map(|m| m.name.as_str());
    println!(
        "{}: master {} (id {}) of cluster {}",
        arguments.data_dir.display(),
        name.unwrap_or("?"),
        found.identity.node_id,
        found.identity.cluster_id
    );
    println!(
        "  log up to entry {}, term {}; {} objects at revision {}, as of entry {}",
        found.last_log_index, found.term, found.objects, found.revision, found.applied_index
    );
    let open = found.last_log_index.saturating_sub(found.committed_index);
    if open > 0 {
        println!("  {open} entries are not known to have reached a majority; they are kept and take effect");
    }
    println!("Other masters that it knew:");
}

fn confirm(yes: bool) -> Result<()> {
    println!(
        "Writes that only the lost masters hold are lost. The old cluster ends: its other members are refused \
         when they come back. Revisions grow by 1,000,000,000, and every watch has to start again."
    );
    if yes {
        return Ok(());
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("nothing was changed; give --yes to confirm");
    }
    print!("Make a cluster of one out of this master? Type yes: ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    input.lock().read_line(&mut line)?;
    ensure!(line.trim() == "yes", "nothing was changed");
    Ok(())
}
