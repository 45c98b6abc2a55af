//! The harness: runs one child after the other on one disk, and changes to a new disk now and then. Prints
//! the seed; a run with the same seed is the same as far as the threads of the children allow.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use chaos_disk::{Control, Mounted, PowerCut};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Kind;
use crate::lazy::Without;
use crate::ledger::{Found, Ledger};

/// Maximum time of a child's start; a longer one counts as failed.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Maximum number of a child's lines that wait to be read.
const LINES: usize = 4096;

/// Command-line flags of `power-cuts`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of power cuts
    #[arg(long, default_value_t = 300)]
    runs: u64,
    /// Seed of the moments of power cuts and of what survives; by default taken from the clock
    #[arg(long)]
    seed: Option<u64>,
    /// Number of power cuts on one disk, before a new disk is used with the other kind of child
    #[arg(long, default_value_t = 10)]
    lives: u64,
    /// Run only this kind of child
    #[arg(long)]
    only: Option<Kind>,
    /// Maximum time that a child runs, in milliseconds
    #[arg(long, default_value_t = 1500)]
    longest: u64,
    /// Syncs to leave out: the run must then fail
    #[arg(long)]
    without: Option<Without>,
    /// Directory for the disks; those of a failed run are kept there
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Counters of the whole run.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    kills: u64,
    during_starts: u64,
    starts: u64,
    acknowledged: u64,
    pending: PowerCut,
}

/// One disk and what is known of its content.
struct Disk {
    // Dropped first: the disk is unmounted before its directory is removed.
    _mounted: Mounted,
    control: Control,
    data: PathBuf,
    ledger: Ledger,
    kind: Kind,
}

/// A line of a child's output.
enum Line {
    Started(u64, u64),
    Acknowledged(u64, u64),
    VoteStarted(u64),
    VoteSaved(u64),
    Found(u64, u64),
    FoundVote(u64),
    Ready,
}

/// A running child process and its output lines.
struct Running {
    child: Child,
    lines: Receiver<Line>,
    words: PathBuf,
}

/// Prints a line for the harness; ends the process if nobody reads it.
pub fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Runs `power-cuts`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(nix_is_root(), "power-cuts needs root: it mounts a file system (try sudo)");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = arguments.seed.unwrap_or(clock);
    println!("power cuts: {} from seed {seed}", arguments.runs);
    let root = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new().prefix("power-cuts-").tempdir_in(root)?;
    let start = Instant::now();
    let mut tally = Tally::default();
    let result = all(arguments, seed, directory.path(), &mut tally);
    tally.print(start.elapsed());
    match (result, arguments.without) {
        (Ok(()), None) => {
            println!("nothing acknowledged was lost, every start succeeded");
            Ok(ExitCode::SUCCESS)
        }
        (Err(error), Some(without)) => {
            println!("without {without:?} it was caught after {} cuts: {error:#}", tally.cuts);
            Ok(ExitCode::SUCCESS)
        }
        (Ok(()), Some(without)) => bail!("{without:?} was left out and nothing was noticed"),
        (Err(error), None) => {
            let kept = directory.keep();
            println!("kept: {}; again: power-cuts --runs {} --seed {seed}", kept.display(), tally.cuts + 1);
            Err(error)
        }
    }
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

fn all(arguments: &Arguments, seed: u64, directory: &Path, tally: &mut Tally) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut number = 0;
    while tally.cuts < arguments.runs {
        number += 1;
        let kind = match arguments.only {
            Some(kind) => kind,
            None if number % 2 == 1 => Kind::Store,
            None => Kind::Master,
        };
        let place = directory.join(number.to_string());
        std::fs::create_dir(&place)?;
        let mut disk = Disk::new(&place, kind)?;
        let lives = arguments.lives.min(arguments.runs - tally.cuts);
        for life in 1..=lives {
            disk.live(arguments, &mut random, tally)
                .with_context(|| format!("disk {number} ({kind:?}), life {life}"))?;
        }
        // The last cut is judged by another start.
        disk.start_and_check(arguments, &mut random, tally)
            .with_context(|| format!("disk {number} ({kind:?}), after its last cut"))?
            .end()?;
        tally.acknowledged += disk.ledger.acknowledged;
        drop(disk);
        std::fs::remove_dir_all(&place)?;
    }
    Ok(())
}

// === impl Tally ===

impl Tally {
    fn print(&self, elapsed: Duration) {
        let PowerCut { names_pending, names_lost, files_pending, blocks_pending, blocks_lost } = self.pending;
        println!(
            "{} power cuts and {} mere kills ({} of both while starting) in {} s; {} starts checked, {} writes acknowledged; taken away: \
             {names_lost} of {names_pending} names, {blocks_lost} of {blocks_pending} blocks of {files_pending} files",
            self.cuts,
            self.kills,
            self.during_starts,
            elapsed.as_secs(),
            self.starts,
            self.acknowledged,
        );
    }

    fn add(&mut self, cut: PowerCut) {
        self.cuts += 1;
        self.pending.names_pending += cut.names_pending;
        self.pending.names_lost += cut.names_lost;
        self.pending.files_pending += cut.files_pending;
        self.pending.blocks_pending += cut.blocks_pending;
        self.pending.blocks_lost += cut.blocks_lost;
    }
}

// === impl Disk ===

impl Disk {
    fn new(place: &Path, kind: Kind) -> Result<Self> {
        let socket = place.join("control");
        let mounted = Mounted::mount(&place.join("backing"), &place.join("disk"), &socket)
            .context("mounting the disk")?;
        let control = Control::connect(&socket)?;
        let mut ledger = Ledger::default();
        ledger.next_version = 1;
        Ok(Self { _mounted: mounted, control, data: place.join("disk/data"), ledger, kind })
    }

    fn spawn(&self, arguments: &Arguments, random: &mut StdRng) -> Result<Running> {
        let words = self.data.with_file_name("../words");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["life", "--directory"]).arg(&self.data);
        command.args(["--seed", &random.random::<u64>().to_string()]);
        command.args(["--from", &self.ledger.next_version.to_string(), "--kind", &name(self.kind)]);
        if let Some(without) = arguments.without {
            command.args(["--without", &name(without)]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&words)?);
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("a child without output")?;
        let (sender, lines) = sync_channel(LINES);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // A line that was cut short by the kill is ignored.
                if let Some(line) = parse(&line)
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        Ok(Running { child, lines, words })
    }

    /// Runs one child and cuts the power at its end.
    fn live(&mut self, arguments: &Arguments, random: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let early = random.random_bool(0.15);
        let running = if early {
            let running = self.spawn(arguments, random)?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
            tally.during_starts += 1;
            running
        } else {
            let running = self.start_and_check(arguments, random, tally)?;
            let until = Instant::now() + Duration::from_millis(random.random_range(1..=arguments.longest));
            self.listen(&running, until)?;
            running
        };
        // If only the process is killed, the next start reads unsynced state from the page cache and builds
        // on it; a later power cut may still take that state away.
        if random.random_bool(0.15) {
            tally.kills += 1;
        } else {
            tally.add(self.control.power_cut(random.random())?);
        }
        let rest = running.end()?;
        let mut found = Found::default();
        rest.into_iter().for_each(|line| self.note(line, &mut found));
        Ok(())
    }

    /// Starts a child and compares what it finds with what must be there.
    fn start_and_check(
        &mut self,
        arguments: &Arguments,
        random: &mut StdRng,
        tally: &mut Tally,
    ) -> Result<Running> {
        let mut running = self.spawn(arguments, random)?;
        let mut found = Found::default();
        let until = Instant::now() + START_WITHIN;
        loop {
            match running.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Line::Ready) => break,
                Ok(line) => self.note(line, &mut found),
                Err(end) => {
                    let how = if end == RecvTimeoutError::Timeout { "took too long" } else { "failed" };
                    let words = running.words()?;
                    let _killed = running.child.kill();
                    running.child.wait()?;
                    bail!("a start {how}: {words}");
                }
            }
        }
        tally.starts += 1;
        let wrong = self.ledger.check(&found);
        ensure!(wrong.is_empty(), "{} keys are wrong: {}", wrong.len(), wrong.join("; "));
        Ok(running)
    }

    /// Records a child's lines until `until`.
    fn listen(&mut self, running: &Running, until: Instant) -> Result<()> {
        let mut found = Found::default();
        loop {
            match running.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.note(line, &mut found),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("a life ended by itself: {}", running.words()?),
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn note(&mut self, line: Line, found: &mut Found) {
        match line {
            Line::Started(key, version) => self.ledger.started(key, version),
            Line::Acknowledged(key, version) => self.ledger.acknowledged(key, version),
            Line::VoteStarted(vote) => self.ledger.vote_started(vote),
            Line::VoteSaved(vote) => self.ledger.vote_saved(vote),
            Line::Found(key, version) => drop(found.keys.insert(key, version)),
            Line::FoundVote(vote) => found.vote = vote,
            Line::Ready => {}
        }
    }
}

// === impl Running ===

impl Running {
    /// Kills the child; returns the lines that it had printed and that were not read yet.
    fn end(mut self) -> Result<Vec<Line>> {
        self.child.kill()?;
        let rest = self.lines.into_iter().collect();
        self.child.wait()?;
        Ok(rest)
    }

    /// Returns what the child printed on standard error.
    fn words(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.words)?.trim().to_owned())
    }
}

fn name<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split(' ');
    let what = words.next()?;
    let mut number = || words.next()?.parse().ok();
    Some(match what {
        "started" => Line::Started(number()?, number()?),
        "acknowledged" => Line::Acknowledged(number()?, number()?),
        "vote-started" => Line::VoteStarted(number()?),
        "vote-saved" => Line::VoteSaved(number()?),
        "found" => Line::Found(number()?, number()?),
        "found-vote" => Line::FoundVote(number()?),
        "ready" => Line::Ready,
        _ => return None,
    })
}
