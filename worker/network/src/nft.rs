//! Runs `nft` scripts. A script is one netlink transaction: it is applied completely or not at all. Called by
//! `proxy::writer` and `pod::rules`; needs the `nft` program (package nftables, 1.0 or later).

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Deadline of one `nft` run.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a script was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started, or its input could not be written.
    #[error("cannot run nft: {0}")]
    Run(#[from] io::Error),
    /// `nft` refused the script; contains its first message.
    #[error("nft: {0}")]
    Refused(String),
    /// `nft` did not end within the deadline and was killed.
    #[error("nft did not finish within {DEADLINE:?}")]
    Deadline,
}

/// Applies a script atomically.
pub async fn apply(script: &str) -> Result<(), Error> {
    run(&["-f", "-"], script).await.map(drop)
}

/// Returns whether a table of family `ip` exists.
pub async fn table_exists(table: &str) -> Result<bool, Error> {
    match run(&["-t", "list", "table", "ip", table], "").await {
        Ok(_) => Ok(true),
        Err(Error::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes tables of family `ip`, whether or not they exist.
pub async fn delete_tables(tables: &[&str]) -> Result<(), Error> {
    let script: String =
        tables.iter().map(|table| format!("add table ip {table}\ndelete table ip {table}\n")).collect();
    apply(&script).await
}

async fn run(args: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // If `nft` refuses the script early and closes the pipe, its exit status says
            // more than the write error.
            match stdin.write_all(input.as_bytes()).await {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output().await
    };
    let output = timeout(DEADLINE, work).await.map_err(|_| Error::Deadline)??;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused(message.lines().take(3).collect::<Vec<_>>().join(" | ")))
}
