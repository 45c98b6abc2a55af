//! A child that uses log and store as a master's consensus does, but directly and with more variation:
//! entries are appended, synced, applied and acknowledged; the objects are synced and the log is purged;
//! entries that were never committed are truncated; the state is replaced by a snapshot of itself.

use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::{Result, ensure};
use bytes::Bytes;
use proto_env::{Disk, SystemRandom};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage::backend::sled::SledHome;
use storage::codec::{decode, encode};
use storage::log::{Done, Log, Options};
use storage::{Command, DataKey, Entry, Limits, Mutation, Sealer, Store, Txn};

use crate::run::say;
use crate::value::{self, KEYS};
use crate::{Life, lazy};

/// Size of a log segment, in bytes: small, so that segments are often closed and removed.
const SEGMENT_BYTES: u64 = 256 * 1024;
/// Number of log entries kept when the log is purged.
const KEPT: u64 = 20;

struct Machine {
    log: Arc<Log>,
    store: Arc<Store>,
    /// Index of the last applied entry.
    index: u64,
    next_version: u64,
    random: StdRng,
}

/// Writes until the power is cut.
pub fn live(life: &Life) -> Result<()> {
    let mut machine = Machine::open(life)?;
    machine.say_what_is_there()?;
    loop {
        machine.write()?;
        match machine.random.random_range(0..40) {
            0 => machine.purge()?,
            1 => machine.replace_state()?,
            2..4 => machine.vote()?,
            4..6 => machine.truncate()?,
            _ => {}
        }
    }
}

/// Makes a write to the log and waits until it is durable.
fn durably(write: impl FnOnce(Done)) -> Result<()> {
    let (sender, receiver) = channel();
    // The receiver waits below, so sending succeeds.
    write(Box::new(move |result| drop(sender.send(result))));
    Ok(receiver.recv()??)
}

// === impl Machine ===

impl Machine {
    /// Opens what is on the disk and applies the log's entries that the store lacks.
    fn open(life: &Life) -> Result<Self> {
        let disk: Arc<dyn Disk> = lazy::disk(life.without);
        let key = DataKey::new([7; 32]);
        let sealer = |context: &str| Sealer::new(&key, context, Arc::new(SystemRandom));
        let home = SledHome::new(&life.directory.join("objects"), sealer("objects"), disk.clone())?;
        let store = Store::open_home(Arc::new(home), Limits::default())?;
        let options = Options { segment_bytes: SEGMENT_BYTES, inline: false };
        let log = Log::open(&life.directory.join("log"), sealer("log"), disk, options)?;
        let applied = store.applied();
        let index = if applied.is_empty() { 0 } else { decode("applied", &applied)? };
        let random = StdRng::seed_from_u64(life.seed);
        let mut machine = Self { log, store, index, next_version: life.from, random };
        let purged = machine.log.state().purged.map_or(0, |(index, _)| index);
        ensure!(purged <= index, "the log is purged up to {purged}, the objects are of {index}");
        machine.replay()?;
        Ok(machine)
    }

    fn replay(&mut self) -> Result<()> {
        // An entry that was never acknowledged counts as committed too: there is only one member.
        for (index, bytes) in self.log.read(self.index + 1, u64::MAX, usize::MAX)? {
            ensure!(index == self.index + 1, "entry {} of the log is missing", self.index + 1);
            self.apply(index, decode("entry", &bytes)?)?;
        }
        Ok(())
    }

    fn apply(&mut self, index: u64, commands: Vec<Command>) -> Result<()> {
        let entry = Entry { index, term: 1, commands, raise: 0 };
        self.store.apply(vec![entry], encode("applied", &index)?)?;
        self.index = index;
        Ok(())
    }

    fn say_what_is_there(&self) -> Result<()> {
        let vote = self.log.state().vote.map_or(Ok(0), |vote| decode("vote", &vote))?;
        say_store(&self.store, vote)
    }

    /// Appends one to a few entries with one to a few writes each, applies and acknowledges them.
    fn write(&mut self) -> Result<()> {
        let (sender, receiver) = channel();
        let mut entries = Vec::new();
        for _ in 0..self.random.random_range(1..6) {
            let index = self.index + 1 + entries.len() as u64;
            let written: Vec<(u64, u64)> = (0..self.random.random_range(1..12))
                .map(|_| (self.random.random_range(0..KEYS), self.version()))
                .collect();
            written.iter().for_each(|(key, version)| say(format_args!("started {key} {version}")));
            let commands: Vec<Command> = written.iter().map(|write| self.command(*write)).collect();
            let (sender, bytes) = (sender.clone(), Bytes::from(encode("entry", &commands)?));
            // The receiver waits below, so sending succeeds.
            self.log.append(vec![(index, bytes)], Box::new(move |result| drop(sender.send(result))));
            entries.push((index, commands, written));
        }
        for (index, commands, written) in entries {
            receiver.recv()??;
            self.apply(index, commands)?;
            written.iter().for_each(|(key, version)| say(format_args!("acknowledged {key} {version}")));
        }
        Ok(())
    }

    fn version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version - 1
    }

    fn command(&mut self, (key, version): (u64, u64)) -> Command {
        Command { id: self.random.random(), born: self.index, fence: None, txn: transaction(key, version) }
    }

    fn vote(&mut self) -> Result<()> {
        let vote = self.version();
        say(format_args!("vote-started {vote}"));
        let bytes = encode("vote", &vote)?;
        durably(|done| self.log.save_vote(bytes, done))?;
        say(format_args!("vote-saved {vote}"));
        Ok(())
    }

    /// Appends entries and truncates them, as when another leader replaces them.
    fn truncate(&mut self) -> Result<()> {
        let noise = Bytes::from(encode("entry", &Vec::<Command>::new())?);
        let entries = (1..4).map(|next| (self.index + next, noise.clone())).collect();
        durably(|done| self.log.append(entries, done))?;
        durably(|done| self.log.truncate_after(Some(self.index), done))
    }

    /// Purges the log as `consensus/log_store.rs` does: the store is synced first, since purged entries
    /// cannot be replayed.
    fn purge(&mut self) -> Result<()> {
        self.store.sync()?;
        let purged = self.log.state().purged.map_or(0, |(index, _)| index);
        let until = self.index.saturating_sub(KEPT);
        if until > purged {
            durably(|done| self.log.purge(until, Vec::new(), done))?;
        }
        Ok(())
    }

    /// Replaces the state as a follower that receives a snapshot does: the log is purged past it.
    fn replace_state(&mut self) -> Result<()> {
        let view = self.store.view();
        let mut staging = self.store.stage()?;
        view.frames().try_for_each(|frame| staging.push(&frame?))?;
        self.store.install(staging.finish()?)?;
        if self.random.random_bool(0.5) {
            durably(|done| self.log.purge(self.index, Vec::new(), done))?;
        }
        Ok(())
    }
}

/// Returns the transaction that writes a version of a key.
pub fn transaction(key: u64, version: u64) -> Txn {
    let name = value::key(key);
    let mutation = if value::is_deletion(version) {
        Mutation::Delete { key: name }
    } else {
        Mutation::Put { key: name, value: value::of(key, version) }
    };
    Txn { preconditions: Vec::new(), mutations: vec![mutation] }
}

/// Reports every key with its version, the vote, and that the start has succeeded.
pub fn say_store(store: &Store, vote: u64) -> Result<()> {
    for object in store.range("", None, 0, None)?.objects {
        let number = value::number(&object.key)?;
        let version = value::version(number, &object.value)?;
        say(format_args!("found {number} {version}"));
    }
    say(format_args!("found-vote {vote}"));
    say(format_args!("ready"));
    Ok(())
}
