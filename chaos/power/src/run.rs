//! The harness: one life after the other on one disk, and a new disk now and
//! then. Prints the seed; a run from the same seed does the same as far as the
//! threads of the children allow.

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

/// A start that takes longer has failed.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Lines of a child on their way.
const LINES: usize = 4096;

/// Flags of `power-cuts`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often the power is cut
    #[arg(long, default_value_t = 300)]
    runs: u64,
    /// Decides when, and what survives; without, one from the clock
    #[arg(long)]
    seed: Option<u64>,
    /// Power cuts in a row on one disk; then a new one, for the other kind of child
    #[arg(long, default_value_t = 10)]
    lives: u64,
    /// Only this kind of child
    #[arg(long)]
    only: Option<Kind>,
    /// The longest life, in milliseconds
    #[arg(long, default_value_t = 1500)]
    longest: u64,
    /// Leave these syncs out: then the run must fail
    #[arg(long)]
    without: Option<Without>,
    /// Where the disks lie; what a failed run left is kept there
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// What happened in all.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    kills: u64,
    during_starts: u64,
    starts: u64,
    acknowledged: u64,
    pending: PowerCut,
}

/// One disk and what is known of it.
struct Disk {
    // Unmounted before the directory goes.
    _mounted: Mounted,
    control: Control,
    data: PathBuf,
    ledger: Ledger,
    kind: Kind,
}

/// A child's line.
enum Line {
    Started(u64, u64),
    Acknowledged(u64, u64),
    VoteStarted(u64),
    VoteSaved(u64),
    Found(u64, u64),
    FoundVote(u64),
    Ready,
}

/// A child process and its lines.
struct Running {
    child: Child,
    lines: Receiver<Line>,
    words: PathBuf,
}

/// Says a line to the harness; nobody to hear it is the end.
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
        // The last cut needs a start to be judged.
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
                // A line cut short by the kill says nothing.
                if let Some(line) = parse(&line)
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        Ok(Running { child, lines, words })
    }

    /// One life and its end.
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
        // Killed alone, it leaves a state that the next start reads from the page
        // cache, and builds on, and that may yet be taken away.
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

    /// Notes what a child says until its time is over.
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
    /// Kills it; gives what it had still said.
    fn end(mut self) -> Result<Vec<Line>> {
        self.child.kill()?;
        let rest = self.lines.into_iter().collect();
        self.child.wait()?;
        Ok(rest)
    }

    /// What it said on standard error.
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
