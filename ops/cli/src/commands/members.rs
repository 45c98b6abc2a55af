//! `ephor members`: who the masters are, taking one out, and handing leadership over.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use proto_wire::cluster::{Member, MembersRequest, RemoveMemberRequest, TransferLeaderRequest};

use crate::admin;

/// List the masters, remove one, or let another lead
#[derive(Debug, Args)]
pub struct MembersArgs {
    /// The kubeconfig to use [default: $KUBECONFIG, or the one of this machine]
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// The peer address (HOST:PORT) of a master to ask [default: found through the API]
    #[arg(long, global = true)]
    address: Option<String>,
    #[command(subcommand)]
    command: Option<MembersCommand>,
}

#[derive(Debug, Subcommand)]
enum MembersCommand {
    /// List the masters (the default)
    List,
    /// Take a master out of the cluster
    Remove {
        /// Its id, as the list shows it
        id: u64,
    },
    /// Hand leadership over to another voter, such as before an upgrade
    TransferLeader {
        /// Its id, as the list shows it
        id: u64,
    },
}

/// Runs `ephor members`.
pub async fn run(arguments: MembersArgs) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
    let mut master = admin::any(&kubeconfig, arguments.address.as_deref()).await?;
    match arguments.command {
        Some(MembersCommand::Remove { id }) => {
            let request = admin::with_deadline(RemoveMemberRequest { id });
            master.remove_member(request).await.map_err(|s| anyhow::anyhow!("{}", s.message()))?;
            println!("member {id} removed");
        }
        Some(MembersCommand::TransferLeader { id }) => {
            let request = admin::with_deadline(TransferLeaderRequest { id });
            master.transfer_leader(request).await.map_err(|s| anyhow::anyhow!("{}", s.message()))?;
            println!("member {id} leads");
        }
        Some(MembersCommand::List) | None => {
            let answer = master.members(admin::with_deadline(MembersRequest {})).await?.into_inner();
            println!("{:<4} {:<16} {:<22} {:<22} ROLE", "ID", "NAME", "PEER", "API");
            for member in &answer.members {
                let (id, role) = (member.id, role_of(member));
                println!(
                    "{id:<4} {:<16} {:<22} {:<22} {role}",
                    member.name, member.peer_address, member.api_address
                );
            }
        }
    }
    Ok(())
}

/// What a member is, in words.
pub fn role_of(member: &Member) -> &'static str {
    match (member.leader, member.voter, member.waiting) {
        (true, ..) => "leader",
        (_, true, _) => "voter",
        (_, _, true) => "learner (waiting for one more master)",
        _ => "learner",
    }
}
