//! A group of three members of one side, each in a process of its own: starts,
//! kills, restarts and measures them. Dropping the group kills the members and
//! removes their data.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::process::Child;

use super::processes::{self, MemberCommand};
use super::{Setup, Side};
use crate::etcd::Client;
use crate::usage::{self, Resident};

/// Number of members in a group.
pub const MEMBERS: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Deadline of a call to a member that may be down.
const POLL_DEADLINE: Duration = Duration::from_secs(2);
/// Prefix of all keys: they look like an API server's, since the store sorts events by key.
pub const PREFIX: &str = "/registry/bench";

/// A group of three members.
pub struct Group {
    /// The side the members belong to.
    pub side: Side,
    members: Vec<Member>,
    clients: Vec<Client>,
    directory: TempDir,
}

struct Member {
    recipe: MemberCommand,
    /// The member's process; `None` while it is down.
    process: Option<Child>,
}

/// The leader of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Position of the leader in the group.
    pub position: usize,
    /// Term in which the member leads.
    pub term: u64,
}

impl Group {
    /// Starts a group on empty directories and waits until all its members vote
    /// and accept writes.
    pub async fn start(setup: &Setup, side: Side) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(side.name()).tempdir_in(setup.directory.path())?;
        let started = match side {
            Side::Ephor => processes::ephor(setup, directory.path()).await?,
            Side::Etcd => processes::etcd(setup, directory.path())?,
        };
        let (mut members, mut clients) = (Vec::new(), Vec::new());
        for (recipe, process) in started {
            clients.push(Client::new(setup.network.clone(), &recipe.address)?);
            members.push(Member { recipe, process: Some(process) });
        }
        let group = Self { side, members, clients, directory };
        group.wait_until("all members vote and take writes", async || group.whole().await).await?;
        Ok(group)
    }

    /// Clients of the members, in order, with one connection each.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// The client of the member at `position`.
    pub fn client(&self, position: usize) -> &Client {
        &self.clients[position]
    }

    /// Positions of all members but the one at `position`.
    pub fn others(&self, position: usize) -> Vec<usize> {
        (0..MEMBERS).filter(|other| *other != position).collect()
    }

    /// Waits until all members agree on a leader, and returns it.
    pub async fn leader(&self) -> Result<Leader> {
        let mut found = None;
        self.wait_until("all members agree on a leader", async || {
            found = Some(self.agreed().await?);
            Ok(())
        })
        .await?;
        found.context("no leader")
    }

    async fn agreed(&self) -> Result<Leader> {
        let mut leader = None;
        let mut seen = Vec::new();
        for (position, client) in self.clients.iter().enumerate() {
            let status = client.within(POLL_DEADLINE).status().await?;
            ensure!(!status.is_learner, "{} does not vote yet", self.members[position].recipe.address);
            ensure!(status.leader != 0, "{} knows no leader", self.members[position].recipe.address);
            if status.header.unwrap_or_default().member_id == status.leader {
                leader = Some(Leader { position, term: status.raft_term });
            }
            seen.push((status.leader, status.raft_term));
        }
        ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "members disagree: {seen:?}");
        leader.context("the leader is no member")
    }

    async fn whole(&self) -> Result<()> {
        self.agreed().await?;
        for client in &self.clients {
            let client = client.within(POLL_DEADLINE);
            client.put(format!("{PREFIX}/ready/key"), Bytes::from_static(b"1")).await?;
        }
        Ok(())
    }

    /// Sends SIGKILL to a member, without waiting for its end.
    pub fn kill(&mut self, position: usize) -> Result<()> {
        self.members[position].process.as_mut().context("it is down already")?.start_kill()?;
        Ok(())
    }

    /// Restarts a killed member on its old data.
    pub async fn start_again(&mut self, position: usize) -> Result<()> {
        let member = &mut self.members[position];
        if let Some(mut process) = member.process.take() {
            process.wait().await?;
        }
        member.process = Some(member.recipe.spawn_again()?);
        Ok(())
    }

    /// Waits until all members agree on a leader, have applied what it had, and
    /// accept writes.
    pub async fn healed(&self) -> Result<()> {
        self.wait_until("the group is whole again", async || {
            let leader = self.agreed().await?;
            let goal = self.clients[leader.position].within(POLL_DEADLINE).status().await?.raft_applied_index;
            for client in &self.clients {
                let applied = client.within(POLL_DEADLINE).status().await?.raft_applied_index;
                ensure!(applied >= goal, "a member has applied {applied} of {goal}");
            }
            self.whole().await
        })
        .await
    }

    /// Waits until `done` succeeds; on timeout the error names `what`.
    async fn wait_until(&self, what: &str, mut done: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let mut last = None;
        let attempt = async {
            while let Err(error) = done().await {
                last = Some(error);
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(START_TIMEOUT, attempt).await.is_err() {
            let why = last.map_or_else(|| "no answer".to_owned(), |error| format!("{error:#}"));
            bail!("{}: not within {START_TIMEOUT:?}: {what}: {why}{}", self.side.name(), self.last_words());
        }
        Ok(())
    }

    fn pid(&self, position: usize) -> Result<u32> {
        let process = self.members[position].process.as_ref();
        process.and_then(Child::id).context("the member has ended")
    }

    /// Returns the resident memory of each member.
    pub fn resident(&self) -> Result<Vec<Resident>> {
        (0..MEMBERS).map(|position| usage::resident(self.pid(position)?)).collect()
    }

    /// Returns the processor time that all members together have used so far.
    pub fn processor_time(&self) -> Result<Duration> {
        (0..MEMBERS).map(|position| usage::processor_time(self.pid(position)?)).sum()
    }

    /// Returns the disk space that each member takes, in bytes.
    pub fn disk(&self) -> Result<Vec<u64>> {
        self.members.iter().map(|member| usage::disk(&member.recipe.data)).collect()
    }

    /// Returns the last lines that each member wrote to standard error.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for member in &self.members {
            let log: PathBuf = member.recipe.log.clone();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(3).collect();
            for line in lines.into_iter().rev() {
                words.push_str(&format!("\n  {}: {line}", member.recipe.address));
            }
        }
        words
    }

    /// Kills all members and removes their data.
    pub async fn end(mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.kill().await?;
            }
        }
        self.directory.close()?;
        Ok(())
    }
}
