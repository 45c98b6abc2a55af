//! `ephor members`: lists the masters and their health; adds, promotes, replaces
//! and removes masters, and transfers leadership. The leader refuses unsafe
//! changes, with the reason.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use proto_wire::cluster::admin_client::AdminClient;
use proto_wire::cluster::{
    Member, MembersRequest, MembersResponse, PromoteMembersRequest, RemoveMemberRequest,
    ReplaceMemberRequest, TransferLeaderRequest,
};
use tonic::transport::Channel;

use crate::admin;
use crate::commands::token::{self, TokenRole};

/// Maximum number of masters in the printed join command.
const JOIN_ADDRESSES: usize = 3;

/// List, add, promote, replace and remove masters, and transfer leadership
#[derive(Debug, Args)]
pub struct MembersArgs {
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Peer address (HOST:PORT) of a master to call [default: found through the API]
    #[arg(long, global = true)]
    address: Option<String>,
    #[command(subcommand)]
    command: Option<MembersCommand>,
}

#[derive(Debug, Subcommand)]
enum MembersCommand {
    /// List the masters (the default)
    List,
    /// Create a token and print the command with which a new master joins
    Add {
        /// Name of the new master [default: its hostname]
        #[arg(long)]
        name: Option<String>,
        /// Id or name of the master that the new one replaces
        #[arg(long, value_name = "MASTER")]
        replace: Option<String>,
        /// Lifetime of the token
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Make learners that have caught up voters; the leader does so by itself when there are two of them
    Promote {
        /// Ids or names of masters, as shown by `ephor members list`
        #[arg(required = true)]
        masters: Vec<String>,
    },
    /// Remove masters from the cluster, all in one change
    Remove {
        /// Ids or names of masters, as shown by `ephor members list`
        #[arg(required = true)]
        masters: Vec<String>,
    },
    /// Replace a master, dead or alive, by a learner in one change
    Replace {
        /// Id or name of the master to remove
        old: String,
        /// Id or name of the learner that replaces it [default: one that has caught up]
        new: Option<String>,
    },
    /// Transfer leadership to another voter, for example before an upgrade
    TransferLeader {
        /// Id or name of the voter
        master: String,
    },
}

type Admin = AdminClient<Channel>;

/// Runs `ephor members`.
pub async fn run(arguments: MembersArgs) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
    let mut master = admin::any(&kubeconfig, arguments.address.as_deref()).await?;
    let known = master.members(admin::with_deadline(MembersRequest::default())).await;
    let known = known.map_err(error_of)?.into_inner();
    let members = &known.members;
    match arguments.command {
        Some(MembersCommand::List) | None => list(&known),
        Some(MembersCommand::Add { name, replace, ttl }) => {
            let old = replace.map(|old| find_member(members, &old)).transpose()?;
            if let Some(name) = &name
                && let Some(other) = members.iter().find(|m| m.name == *name && m.voter && m.health == "ok")
            {
                bail!("master {} is named {name} and is running: choose another name", other.id);
            }
            print!("{}", join_command(&kubeconfig, members, name.as_deref(), old, ttl).await?);
        }
        Some(MembersCommand::Promote { masters }) => {
            let chosen = find_members(members, &masters)?;
            let ids = chosen.iter().map(|m| m.id).collect();
            let request = admin::with_change_deadline(PromoteMembersRequest { ids });
            master.promote_members(request).await.map_err(error_of)?;
            println!("{}: {}", votes(&mut master).await?, names(&chosen));
        }
        Some(MembersCommand::Remove { masters }) => {
            let chosen = find_members(members, &masters)?;
            let ids: Vec<u64> = chosen.iter().map(|m| m.id).collect();
            let (id, others) = ids.split_first().context("name a master")?;
            let request = RemoveMemberRequest { id: *id, others: others.to_vec() };
            master.remove_member(admin::with_change_deadline(request)).await.map_err(error_of)?;
            println!("removed: {}", names(&chosen));
        }
        Some(MembersCommand::Replace { old, new }) => {
            let old = find_member(members, &old)?;
            let new = new.map(|new| find_member(members, &new)).transpose()?;
            if new.is_none() && !members.iter().any(|m| !m.voter && m.health == "ok") {
                eprintln!("No learner is ready to replace {}. Start one on a new host:", old.name);
                print!(
                    "{}",
                    join_command(&kubeconfig, members, None, Some(old), Duration::from_secs(3600)).await?
                );
                eprintln!("It replaces the old master by itself once it has caught up.");
                return Ok(());
            }
            let request = ReplaceMemberRequest { old: old.id, new: new.map_or(0, |m| m.id) };
            let answer = master.replace_member(admin::with_change_deadline(request)).await;
            let new = answer.map_err(error_of)?.into_inner().new;
            let name = members.iter().find(|m| m.id == new).map(|m| m.name.as_str()).unwrap_or("?");
            println!("{} (id {}) was replaced by {name} (id {new})", old.name, old.id);
        }
        Some(MembersCommand::TransferLeader { master: to }) => {
            let to = find_member(members, &to)?;
            let request = admin::with_change_deadline(TransferLeaderRequest { id: to.id });
            master.transfer_leader(request).await.map_err(error_of)?;
            println!("{} (id {}) leads", to.name, to.id);
        }
    }
    Ok(())
}

fn error_of(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

fn list(known: &MembersResponse) {
    println!(
        "{:<6} {:<12} {:<21} {:<21} {:<28} {:>6} {:>8}  ROLE",
        "ID", "NAME", "PEER", "API", "HEALTH", "LAG", "HEARD"
    );
    for member in &known.members {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let lag = or_dash(member.lag.map(|lag| lag.to_string()));
        let heard = or_dash(member.heard_ms.map(|ms| format!("{ms} ms")));
        let health = if member.health.is_empty() { "?" } else { &member.health };
        println!(
            "{:<6} {:<12} {:<21} {:<21} {health:<28} {lag:>6} {heard:>8}  {}",
            member.id,
            member.name,
            member.peer_address,
            member.api_address,
            role_of(member)
        );
    }
    if !known.from_leader {
        eprintln!(
            "No leader answers: this is the last state known to master {}. Without a majority nothing can change.",
            known.node_id
        );
    }
    if !known.autopilot.is_empty() {
        eprintln!("autopilot: {}", known.autopilot);
    }
}

/// Finds the member whose id or name is `text`.
fn find_member<'a>(members: &'a [Member], text: &str) -> Result<&'a Member> {
    if let Some(member) = text.parse().ok().and_then(|id: u64| members.iter().find(|m| m.id == id)) {
        return Ok(member);
    }
    let named: Vec<&Member> = members.iter().filter(|m| m.name == text).collect();
    match named[..] {
        [member] => Ok(member),
        [] => bail!("there is no master {text}; see `ephor members list`"),
        _ => bail!("several masters are named {text}; give the id, see `ephor members list`"),
    }
}

fn find_members<'a>(members: &'a [Member], texts: &[String]) -> Result<Vec<&'a Member>> {
    texts.iter().map(|text| find_member(members, text)).collect()
}

fn names(members: &[&Member]) -> String {
    members.iter().map(|m| format!("{} (id {})", m.name, m.id)).collect::<Vec<_>>().join(", ")
}

async fn votes(master: &mut Admin) -> Result<String> {
    let now = master.members(admin::with_deadline(MembersRequest::default())).await.map_err(error_of)?;
    let voters = now.into_inner().members.iter().filter(|m| m.voter).count();
    Ok(format!("{voters} masters vote now"))
}

/// Creates a token and returns the command with which a master joins.
async fn join_command(
    kubeconfig: &std::path::Path,
    members: &[Member],
    name: Option<&str>,
    replaces: Option<&Member>,
    ttl: Duration,
) -> Result<String> {
    let client = crate::kubeconfig::client(kubeconfig, None).await?;
    let ca = crate::kubeconfig::ca_of(kubeconfig)?;
    let purpose = match (name, replaces) {
        (_, Some(old)) => format!("a master in place of {}", old.name),
        (Some(name), None) => format!("master {name}"),
        (None, None) => "a master".to_owned(),
    };
    let token = token::create(&client, &ca, TokenRole::Master, None, ttl, &purpose).await?;
    let running = |m: &&Member| m.voter && matches!(&m.health[..], "ok" | "");
    let there: Vec<&str> =
        members.iter().filter(running).take(JOIN_ADDRESSES).map(|m| &m.peer_address[..]).collect();
    let mut command = format!("ephor master --join {} --token {token}", there.join(","));
    for (flag, value) in [("--name", name.map(str::to_owned)), ("--replace", replaces.map(reference))] {
        if let Some(value) = value {
            command.push_str(&format!(" {flag} {value}"));
        }
    }
    Ok(format!("{command} --advertise-address ADDRESS_OF_THE_NEW_HOST\n"))
}

/// Refers to a member by its id, which is never reused; a name may be.
fn reference(member: &Member) -> String {
    member.id.to_string()
}

/// Describes a member's role in words.
pub fn role_of(member: &Member) -> &'static str {
    match (member.leader, member.voter, member.replaces != 0, member.waiting) {
        (true, ..) => "leader",
        (_, true, ..) => "voter",
        (_, _, true, _) => "learner (takes another's place once caught up)",
        (_, _, _, true) => "learner (waiting for one more master)",
        _ => "learner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.to_owned(), ..Member::default() }
    }

    #[test]
    fn a_master_is_called_by_its_id_or_by_a_name_that_is_its_own() {
        let members = [member(1, "a"), member(7, "b"), member(9, "b"), member(12, "7")];
        assert_eq!(find_member(&members, "a").unwrap().id, 1);
        // An id takes precedence over a name that looks like an id.
        assert_eq!(find_member(&members, "7").unwrap().id, 7);
        assert!(find_member(&members, "b").unwrap_err().to_string().contains("several"));
        assert!(find_member(&members, "c").unwrap_err().to_string().contains("no master c"));
        assert!(find_members(&members, &["a".into(), "c".into()]).is_err());
    }
}
