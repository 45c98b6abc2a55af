//! Applies and undoes effects on this node. `held.rs` calls it, one call at a time, on a thread for blocking
//! calls: everything in this file waits for the kernel or for other programs. Undoing is idempotent, since
//! the agent may have crashed before or after it.

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

/// The node that an agent works on.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// The node's process; with `None` nothing can be killed or paused.
    pub process: Option<Supervised>,
    /// Control socket of the disk below the node's data; with `None` the disk cannot fail.
    pub disk: Option<PathBuf>,
    /// Port of the agent, whose packets no fault drops or delays.
    pub agent_port: u16,
    /// Active packet delays.
    pub delays: Delays,
    /// Programs that keep the machine busy.
    pub programs: Programs,
}

impl Node {
    /// Checks that an effect can be applied to this node and undone; returns the present value of the counter
    /// for its kind.
    ///
    /// # Errors
    /// Fails with the reason why the effect cannot be applied.
    pub fn ready(&self, effect: &Effect) -> io::Result<u64> {
        match effect {
            Effect::Drop(_) | Effect::Delay(_) => Ok(0),
            Effect::Kill | Effect::Pause | Effect::Busy(_) => self.process().map(|_| 0),
            Effect::PowerLoss { .. } => self.process().and_then(|_| self.disk()).map(|_| 0),
            Effect::Disk(kind) => disk::counted(self.disk()?, *kind),
        }
    }

    /// Applies an effect; returns how often it took effect at once.
    ///
    /// # Errors
    /// Fails if this node does not support the effect, or with the system's error.
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

    /// Undoes an effect; returns how often it took effect since it was applied, beyond what [`Node::apply`]
    /// returned. Starts the process if it is down because of the effect, unless `stay_down` is set.
    ///
    /// # Errors
    /// Fails with the system's error; undoing may be retried.
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
                // A master whose disk fails ends by design, so it is started.
                self.process.as_ref().map_or(Ok(()), start)?;
                Ok(disk::counted(disk, *kind)?.saturating_sub(held.counted))
            }
        }
    }

    /// Starts the node's process so that it joins a cluster.
    ///
    /// # Errors
    /// Fails with the system's error.
    pub fn join(&self, join: &[String], token: &str) -> io::Result<()> {
        let more = ["--join".to_owned(), join.join(","), "--token".to_owned(), token.to_owned()];
        self.process()?.start(&more)
    }

    /// Returns the directory for files of busy programs: on the disk of the node's own files.
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
