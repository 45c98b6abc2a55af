//! Drops packets with nftables, in the agent's network namespace. Every fault has its own table
//! `ephor_chaos_ID` of family `inet`, so that faults can overlap, undoing one is a single transaction, and
//! the table's counters tell how often it took effect. Called by `node`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::effect::{ALL_PACKETS, Drop};

/// Prefix of the names of all our tables.
const PREFIX: &str = "ephor_chaos_";
/// Text of the kernel's error for a table that does not exist.
const ABSENT: &str = "No such file or directory";

/// Starts to drop packets, except those of the agent's own port.
///
/// # Errors
/// Fails with what `nft` says.
pub fn apply(id: &str, drop: &Drop, agent_port: u16) -> io::Result<()> {
    nft(&["-f", "-"], &script(id, drop, agent_port)).map(|_| ())
}

/// Stops dropping packets; returns how many were dropped, 0 if the fault was not applied.
///
/// # Errors
/// Fails with what `nft` says.
pub fn undo(id: &str) -> io::Result<u64> {
    let table = format!("{PREFIX}{id}");
    let fired = match nft(&["-j", "list", "table", "inet", &table], "") {
        Ok(listed) => counted(&listed),
        Err(error) if error.to_string().contains(ABSENT) => return Ok(0),
        Err(error) => return Err(error),
    };
    nft(&["delete", "table", "inet", &table], "")?;
    Ok(fired)
}

/// Removes every table of any agent in this network namespace.
///
/// # Errors
/// Fails with what `nft` says.
pub fn undo_all() -> io::Result<()> {
    let tables = nft(&["list", "tables", "inet"], "")?;
    let ours = tables.lines().filter_map(|line| line.strip_prefix("table inet "));
    for table in ours.filter(|name| name.starts_with(PREFIX)) {
        nft(&["delete", "table", "inet", table], "")?;
    }
    Ok(())
}

/// Returns the `nft` script that creates the table of a fault in one transaction.
fn script(id: &str, drop: &Drop, agent_port: u16) -> String {
    let chance = match drop.of_ten_thousand {
        ALL_PACKETS.. => String::new(),
        some => format!(" numgen random mod {ALL_PACKETS} < {some}"),
    };
    let sides = [("arrive", "input", "saddr", &drop.from), ("leave", "output", "daddr", &drop.to)];
    let mut script = String::new();
    for (chain, hook, field, peers) in sides {
        if peers.is_empty() {
            continue;
        }
        let rules = peers.iter().map(|peer| {
            let family = if matches!(peer, IpAddr::V4(_)) { "ip" } else { "ip6" };
            format!("{family} {field} {peer}{chance} counter drop")
        });
        script.push_str(&filling(id, chain, hook, agent_port, rules));
    }
    emptying(id) + &script
}

/// Returns the `nft` commands that create a fault's table anew, without chains.
pub(super) fn emptying(id: &str) -> String {
    let table = format!("inet {PREFIX}{id}");
    format!("add table {table}\ndelete table {table}\nadd table {table}\n")
}

/// Returns the `nft` commands for one chain of a fault's table.
pub(super) fn filling(
    id: &str,
    chain: &str,
    hook: &str,
    agent_port: u16,
    rules: impl Iterator<Item = String>,
) -> String {
    let table = format!("inet {PREFIX}{id}");
    // Runs before the chains of others, so that they do not see dropped packets.
    let mut script = format!(
        "add chain {table} {chain} {{ type filter hook {hook} priority -400; policy accept; }}\n\
         add rule {table} {chain} tcp dport {agent_port} accept\n\
         add rule {table} {chain} tcp sport {agent_port} accept\n"
    );
    for rule in rules {
        let _ = writeln!(script, "add rule {table} {chain} {rule}");
    }
    script
}

/// Returns the sum of all counters in a listed table.
fn counted(listed: &str) -> u64 {
    let listed: Value = serde_json::from_str(listed).unwrap_or_default();
    let parts = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let statements = parts.iter().filter_map(|part| part["rule"]["expr"].as_array()).flatten();
    statements.filter_map(|statement| statement["counter"]["packets"].as_u64()).sum()
}

pub(super) fn nft(arguments: &[&str], input: &str) -> io::Result<String> {
    let child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| io::Error::new(error.kind(), format!("running nft: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // If `nft` rejects a script early, it closes the pipe; its exit status has the reason.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft: {}", message.lines().next().unwrap_or("refused without a word"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_stays_reachable_and_every_drop_is_counted() {
        let peers = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let drop = Drop { from: peers, to: Vec::new(), of_ten_thousand: ALL_PACKETS };
        let script = script("x", &drop, 6446);
        assert!(script.contains("tcp sport 6446 accept"), "{script}");
        assert!(script.contains("arrive ip saddr 10.0.0.2 counter drop"), "{script}");
        assert!(script.contains("arrive ip6 saddr fd00::2 counter drop"), "{script}");
        assert!(!script.contains("leave"), "{script}");
    }

    #[test]
    fn some_packets_are_lost_by_chance() {
        let to = vec!["10.0.0.2".parse().unwrap()];
        let drop = Drop { from: Vec::new(), to, of_ten_thousand: 250 };
        let script = script("x", &drop, 6446);
        assert!(
            script.contains("leave ip daddr 10.0.0.2 numgen random mod 10000 < 250 counter drop"),
            "{script}"
        );
    }

    #[test]
    fn counters_are_summed() {
        let listed = r#"{"nftables": [{"metainfo": {}}, {"rule": {"expr": [{"match": {}},
            {"counter": {"packets": 3, "bytes": 100}}, {"drop": null}]}},
            {"rule": {"expr": [{"counter": {"packets": 4, "bytes": 9}}]}}]}"#;
        assert_eq!(counted(listed), 7);
        assert_eq!(counted("nonsense"), 0);
    }
}
