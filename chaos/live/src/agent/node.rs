//! What one effect means on this node: how it is applied and how it is undone.
//! `held.rs` calls it, never twice at once, and off the async threads: everything
//! here waits for the kernel or for other programs. Undoing is idempotent, for a
//! crash may have come before or after it.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::busy::Programs;
use super::delay::Delays;
use super::disk;
use super::journal::Held;
use super::packets;
use super::process::Supervised;
use crate::effect::Effect;

/// The node an agent is for.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is called.
    pub name: String,
    /// Its process; without, nothing can be killed or paused.
    pub process: Option<Supervised>,
    /// The control socket of the disk below its data; without, the disk cannot fail.
    pub disk: Option<PathBuf>,
    /// The port of the agent, which no fault cuts off.
    pub agent_port: u16,
    /// The packets that are late.
    pub delays: Delays,
    /// The programs that keep the machine busy.
    pub programs: Programs,
}

impl Node {
    /// Whether an effect can be applied here, and undone; and what the counter of
    /// its kind stands at before.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn ready(&self, effect: &Effect) -> io::Result<u64> {
        match effect {
            Effect::Drop(_) | Effect::Delay(_) => Ok(0),
            Effect::Kill | Effect::Pause | Effect::Busy(_) => self.process().map(|_| 0),
            Effect::PowerLoss { .. } => self.process().and_then(|_| self.disk()).map(|_| 0),
            Effect::Disk(kind) => disk::counted(self.disk()?, *kind),
        }
    }

    /// Applies an effect and says how often it took effect at once.
    ///
    /// # Errors
    /// What this node cannot do, or what the system says.
    pub fn apply(&self, held: &Held) -> io::Result<u64> {
        match &held.effect {
            Effect::Drop(drop) => packets::apply(&held.id, drop, self.agent_port).map(|()| 0),
            Effect::Delay(delay) => self.delays.apply(&held.id, delay, self.agent_port).map(|()| 0),
            Effect::Kill => self.process()?.kill().map(u64::from),
            Effect::Pause => self.process()?.signal(Signal::SIGSTOP).map(u64::from),
            Effect::PowerLoss { seed } => {
                let (process, disk) = (self.process()?, self.disk()?);
                let ran = process.kill()?;
                disk::power_cut(disk, *seed)?;
                Ok(u64::from(ran))
            }
            Effect::Busy(kind) => self.programs.start(&held.id, *kind, self.directory()?, held.left()),
            Effect::Disk(kind) => disk::set(self.disk()?, *kind).map(|()| 0),
        }
    }

    /// Undoes an effect and says how often it took effect since it was applied,
    /// beyond what [`Node::apply`] said. A process that died of it is started,
    /// unless it is to `stay_down`.
    ///
    /// # Errors
    /// What the system says; it may be tried again.
    pub fn undo(&self, held: &Held, stay_down: bool) -> io::Result<u64> {
        let start = |process: &Supervised| if stay_down { Ok(()) } else { process.start(&[]) };
        match &held.effect {
            Effect::Drop(_) => packets::undo(&held.id),
            Effect::Delay(_) => self.delays.undo(&held.id),
            Effect::Kill | Effect::PowerLoss { .. } => start(self.process()?).map(|()| 0),
            Effect::Pause => self.process()?.signal(Signal::SIGCONT).map(|_| 0),
            Effect::Busy(_) => self.programs.stop(&held.id, self.directory()?).map(|()| 0),
            Effect::Disk(kind) => {
                let disk = self.disk()?;
                disk::clear(disk)?;
                // A master whose disk fails ends, as it should.
                self.process.as_ref().map_or(Ok(()), start)?;
                Ok(disk::counted(disk, *kind)?.saturating_sub(held.counted))
            }
        }
    }

    /// Starts the process of a node that is to join.
    ///
    /// # Errors
    /// What the system says.
    pub fn join(&self, join: &[String], token: &str) -> io::Result<()> {
        let more = ["--join".to_owned(), join.join(","), "--token".to_owned(), token.to_owned()];
        self.process()?.start(&more)
    }

    /// Where programs that write may do so: on the disk of the node's own files.
    fn directory(&self) -> io::Result<&Path> {
        let process = self.process()?;
        process.pid_file.parent().ok_or_else(|| io::Error::other("the pid file is in no directory"))
    }

    fn process(&self) -> io::Result<&Supervised> {
        self.process.as_ref().ok_or_else(|| {
            io::Error::other(
                "this agent does not know the node's process: start it with --pid-file and a command",
            )
        })
    }

    fn disk(&self) -> io::Result<&PathBuf> {
        self.disk.as_ref().ok_or_else(|| {
            io::Error::other(
                "the node's data is not on a disk that can fail: mount `ephor chaos disk`, and start the agent \
                 with --disk-control",
            )
        })
    }
}
