//! The containers of the shim's daemon: starts them, follows them to their end and records it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto_env::supervise::{Panicked, catch, supervise};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use super::ShimError;
use super::log::{LineWriter, LogFile, OutputStream};
use super::plan::{ExitRecord, LaunchPlan, LaunchResult, StartedRecord, now};
use super::protocol::Ended;
use super::reaper::Reaper;
use super::stdio::{CONSOLE, Console, InputEnd, Output, ProcessStreams, Pty, copy};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::files;
use crate::paths::container_file;

/// Maximum time to wait for the end of a container's output after its last process was killed.
const DRAIN: Duration = Duration::from_secs(10);
/// Number of attempts, [`CGROUP_STEP`] apart, to remove a cgroup that the kernel still holds.
const CGROUP_STEPS: u32 = 100;
const CGROUP_STEP: Duration = Duration::from_millis(20);

/// Pause between attempts to write the record of a container's end.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// A container whose first process is running.
pub(crate) struct Running {
    pub plan: LaunchPlan,
    pub started: StartedRecord,
    pub log: LogFile,
    pub output: Arc<Output>,
    pub stdin: tokio::sync::Mutex<Option<InputEnd>>,
    pub pty: Option<Arc<Pty>>,
    pub cgroup: Cgroup,
}

/// The running containers of the daemon's pod.
pub(crate) struct Containers {
    pub reaper: Reaper,
    hierarchies: Hierarchies,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    /// Serializes starts, so that a repeated start request finds the container running.
    starts: tokio::sync::Mutex<()>,
    /// Exit records by container that could not be written yet, for example because the disk is full.
    unrecorded: Mutex<BTreeMap<String, ExitRecord>>,
    pub ended: broadcast::Sender<Ended>,
}

impl Containers {
    pub fn new(reaper: Reaper) -> io::Result<Self> {
        let (ended, _) = broadcast::channel(256);
        Ok(Self {
            reaper,
            hierarchies: Hierarchies::detect()?,
            running: Mutex::default(),
            starts: tokio::sync::Mutex::default(),
            unrecorded: Mutex::default(),
            ended,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, container: &str) -> Option<Arc<Running>> {
        self.lock().get(container).cloned()
    }

    /// Starts the container whose bundle is `bundle` and returns once its program runs. Returns the first
    /// start's record if the container runs already: the runtime repeats a request whose answer was lost.
    pub async fn start(self: &Arc<Self>, bundle: &Path) -> Result<StartedRecord, ShimError> {
        let plan: LaunchPlan = files::read_json(&bundle.join(container_file::PLAN))
            .map_err(ShimError::io("read the plan"))?
            .ok_or_else(|| ShimError::Container("the container has no plan".into()))?;
        let _one = self.starts.lock().await;
        if let Some(running) = self.get(&plan.container_id) {
            return Ok(running.started.clone());
        }
        if let Some(started) = self.ended_before(&plan)? {
            return Ok(started);
        }
        let log = LogFile::open(plan.log_path.clone()).map_err(ShimError::io("open the log"))?;
        let mut streams = match plan.tty {
            true => ProcessStreams::terminal(),
            false => ProcessStreams::pipes(plan.stdin).map_err(ShimError::io("make pipes"))?,
        };
        let launch = Launch {
            verb: "launch",
            directory: bundle,
            arguments: &[],
            result: &bundle.join(container_file::LAUNCHED),
            console: plan.tty.then_some(CONSOLE),
        };
        let mark = self.reaper.mark();
        let launched = launch.run(&self.reaper, &mut streams).await;
        let (launched, pty) = match launched {
            Ok(launched) => launched,
            Err(error) => {
                self.clean_up(&plan).await;
                return Err(error);
            }
        };
        let started = StartedRecord { pid: launched.pid, started_at: now(), user: launched.user };
        let exit = self.reaper.wait(started.pid, mark);
        if let Err(error) = files::replace_json(&plan.records.join(container_file::STARTED), &started) {
            // Without a record on disk a restarted runtime would not find the container.
            self.clean_up(&plan).await;
            return Err(ShimError::io("record the start")(error));
        }
        let output = Arc::new(Output::default());
        let cgroup = self.hierarchies.cgroup(&plan.cgroup);
        let copies = copy_output(&mut streams, &log, &output, &cgroup);
        let running = Arc::new(Running {
            cgroup,
            stdin: tokio::sync::Mutex::new(streams.stdin.take()),
            started: started.clone(),
            log,
            output,
            pty,
            plan,
        });
        self.lock().insert(running.plan.container_id.clone(), running.clone());
        let end = self.clone().see_to_the_end(running.clone(), exit, copies);
        tokio::spawn(self.clone().supervised(running, end));
        Ok(started)
    }

    /// Runs `end`, which follows a container to its end. If it panics, ends the container, so that the agent
    /// restarts it instead of waiting for an end that is never reported; if that panics too, ends the daemon,
    /// which the runtime notices.
    async fn supervised(self: Arc<Self>, running: Arc<Running>, end: impl Future<Output = ()>) {
        let Err(panic) = catch("shim-container", end).await else { return };
        running.cgroup.kill();
        let exit = ExitRecord {
            exit_code: 255,
            finished_at: now(),
            reason: "Error".into(),
            message: format!("the pod's shim failed: {panic}"),
        };
        if let Err(panic) = catch("shim-container-end", self.finish(&running, exit)).await {
            die(&panic);
        }
    }

    /// Waits for the container's first process, kills the container's other processes, and records the end
    /// once all output is in the log.
    async fn see_to_the_end(
        self: Arc<Self>,
        running: Arc<Running>,
        exit: oneshot::Receiver<i32>,
        copies: Vec<JoinHandle<()>>,
    ) {
        let exit_code = exit.await.unwrap_or(255);
        let finished_at = now();
        let out_of_memory = running.cgroup.oom_kills() > 0;
        running.cgroup.kill();
        for copy in copies {
            let aborted = copy.abort_handle();
            if tokio::time::timeout(DRAIN, copy).await.is_err() {
                say!("output of {} is still held open", running.plan.container_id);
                aborted.abort();
            }
        }
        let reason = match (out_of_memory, exit_code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let exit = ExitRecord { exit_code, finished_at, reason: reason.into(), message: String::new() };
        self.finish(&running, exit).await;
    }

    /// Cleans up after a container, records its end and reports it.
    async fn finish(self: &Arc<Self>, running: &Running, exit: ExitRecord) {
        self.clean_up(&running.plan).await;
        self.record(&running.plan, &exit);
        self.lock().remove(&running.plan.container_id);
        running.output.end(exit.exit_code).await;
        // Sending fails if no runtime watches; the end is on disk in any case.
        let _ = self.ended.send(Ended { container: running.plan.container_id.clone(), exit });
    }

    /// Returns the start record of a container that has already ended, for a start request that is repeated
    /// because its answer was lost; `None` if it has not ended.
    fn ended_before(&self, plan: &LaunchPlan) -> Result<Option<StartedRecord>, ShimError> {
        let ended = self.unrecorded().contains_key(&plan.container_id)
            || plan.records.join(container_file::EXIT).exists();
        if !ended {
            return Ok(None);
        }
        files::read_json(&plan.records.join(container_file::STARTED)).map_err(ShimError::io("read the start"))
    }

    /// Locks the exit records that are not on disk yet, by container.
    pub fn unrecorded(&self) -> MutexGuard<'_, BTreeMap<String, ExitRecord>> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a container's exit record to disk; retries until that succeeds or the container is removed.
    fn record(self: &Arc<Self>, plan: &LaunchPlan, exit: &ExitRecord) {
        let path = plan.records.join(container_file::EXIT);
        let Err(error) = files::replace_json(&path, exit) else { return };
        say!("record the exit of {}: {error}", plan.container_id);
        self.unrecorded().insert(plan.container_id.clone(), exit.clone());
        let (containers, container, exit) = (self.clone(), plan.container_id.clone(), exit.clone());
        tokio::spawn(supervise("shim-exit-record", move || {
            let (containers, container) = (containers.clone(), container.clone());
            let (path, exit) = (path.clone(), exit.clone());
            async move {
                while path.parent().is_some_and(Path::exists) {
                    tokio::time::sleep(RECORD_RETRY).await;
                    if files::replace_json(&path, &exit).is_ok() {
                        break;
                    }
                }
                containers.unrecorded().remove(&container);
            }
        }));
    }

    /// Removes a container's cgroup and libcontainer's state.
    async fn clean_up(&self, plan: &LaunchPlan) {
        let cgroup = self.hierarchies.cgroup(&plan.cgroup);
        for step in 1..=CGROUP_STEPS {
            cgroup.kill();
            match cgroup.remove() {
                Ok(()) => break,
                // The kernel releases a cgroup only a moment after its processes were killed.
                Err(_) if step < CGROUP_STEPS => tokio::time::sleep(CGROUP_STEP).await,
                Err(error) => say!("remove the cgroup of {}: {error}", plan.container_id),
            }
        }
        if let Err(error) = files::remove_tree(&plan.libcontainer.join(&plan.container_id)) {
            say!("remove libcontainer's state of {}: {error}", plan.container_id);
        }
    }

    /// Sends a signal to the container's first process, or with `all` to all of its processes.
    pub fn signal(&self, container: &str, number: i32, all: bool) -> Result<bool, ShimError> {
        let Some(running) = self.get(container) else { return Ok(false) };
        let signal = Signal::try_from(number).map_err(ShimError::io(format!("signal {number}")))?;
        if all {
            for pid in running.cgroup.processes() {
                // A process that has ended meanwhile needs no signal.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        // The process is a child of the daemon, so its id is not reused before it was waited for.
        match kill(Pid::from_raw(running.started.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(true),
            Err(error) => Err(ShimError::io("signal the container")(error)),
        }
    }

    /// Kills every container and waits until their ends are recorded. Waits for a start in progress too, so
    /// that its program does not outlive the daemon. No container starts while the returned guard is held.
    pub async fn kill_all(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let none_starts = self.starts.lock().await;
        let mut ended = self.ended.subscribe();
        // The lock on the table is released before the loop, whose body takes it again.
        let all: Vec<String> = self.lock().keys().cloned().collect();
        for container in all {
            if let Err(error) = self.signal(&container, libc::SIGKILL, true) {
                say!("{error}");
            }
        }
        while !self.lock().is_empty() {
            if let Err(broadcast::error::RecvError::Closed) = ended.recv().await {
                break;
            }
        }
        none_starts
    }
}

/// Ends the daemon after a panic that it cannot recover from: the runtime notices the end, kills what is left
/// of the pod and makes the pod anew.
pub(crate) fn die(panic: &Panicked) -> ! {
    say!("{panic}; the pod ends");
    std::process::exit(1)
}

fn copy_output(
    streams: &mut ProcessStreams,
    log: &LogFile,
    output: &Arc<Output>,
    cgroup: &Cgroup,
) -> Vec<JoinHandle<()>> {
    let pairs =
        [(streams.stdout.take(), OutputStream::Stdout), (streams.stderr.take(), OutputStream::Stderr)];
    let copies = pairs.into_iter().filter_map(|(source, stream)| {
        let writer = LineWriter::new(log.clone(), stream);
        let cgroup = cgroup.clone();
        source.map(|source| tokio::spawn(or_kill(copy(source, writer, stream, output.clone()), cgroup)))
    });
    copies.collect()
}

/// Copies a container's output; kills the container if that panics, because a program whose output nobody
/// reads blocks or fails.
async fn or_kill(copying: impl Future<Output = ()>, cgroup: Cgroup) {
    if let Err(panic) = catch("shim-output", copying).await {
        say!("{panic}; the container ends");
        cgroup.kill();
    }
}

/// The arguments of one run of a launcher process.
pub(crate) struct Launch<'a> {
    pub verb: &'a str,
    pub directory: &'a Path,
    pub arguments: &'a [&'a Path],
    /// File that the launcher writes its result to.
    pub result: &'a Path,
    /// Name of the socket in `directory` that receives the process's terminal; `None` without a terminal.
    pub console: Option<&'a str>,
}

/// A process that a launcher started in a container.
pub(crate) struct Process {
    pub pid: i32,
    pub user: super::plan::ResolvedUser,
}

impl Launch<'_> {
    /// Runs the launcher until it ends and returns the process that it started, with its terminal.
    pub async fn run(
        &self,
        reaper: &Reaper,
        streams: &mut ProcessStreams,
    ) -> Result<(Process, Option<Arc<Pty>>), ShimError> {
        files::remove_file(self.result).map_err(ShimError::io("remove an old result"))?;
        let console = match self.console {
            Some(name) => Some(
                Console::listen(self.directory, name).map_err(ShimError::io("listen for the terminal"))?,
            ),
            None => None,
        };
        let mark = reaper.mark();
        let none = [Stdio::null(), Stdio::null(), Stdio::null()];
        let [stdin, stdout, stderr] = std::mem::replace(&mut streams.child, none);
        let mut command = Command::new("/proc/self/exe");
        command.arg0("ephor").args(["shim", self.verb]).arg(self.directory).args(self.arguments);
        command.env_clear().current_dir("/").stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(ShimError::io("start the launcher"))?;
        // Dropping the command closes its ends of the pipes: readers see the end only once all are closed.
        drop(command);
        let pid =
            i32::try_from(child.id()).map_err(|_| ShimError::Container("process id out of range".into()))?;
        let mut exit = reaper.wait(pid, mark);
        let mut pty = None;
        if let Some(console) = &console {
            tokio::select! {
                biased;
                received = console.receive() => pty = Some(received.map_err(ShimError::io("receive the terminal"))?),
                // The launcher failed before there was a terminal; its result says why.
                _ = &mut exit => return Err(self.result().err().unwrap_or_else(died)),
            }
        }
        exit.await.map_err(|_| died())?;
        if let Some(pty) = &pty {
            streams.take_terminal(pty);
        }
        Ok((self.result()?, pty))
    }

    fn result(&self) -> Result<Process, ShimError> {
        match files::read_json(self.result).map_err(ShimError::io("read the launcher's result"))? {
            Some(LaunchResult::Ok { pid, user }) => Ok(Process { pid, user }),
            Some(LaunchResult::Err(message)) => Err(ShimError::Container(message)),
            None => Err(died()),
        }
    }
}

fn died() -> ShimError {
    ShimError::Container("the launcher died".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::plan::{Propagation, RootfsPlan, SeccompProfile, UserRequest};

    fn plan(records: &Path) -> LaunchPlan {
        LaunchPlan {
            container_id: "c".into(),
            bundle: records.into(),
            libcontainer: records.into(),
            records: records.into(),
            rootfs: RootfsPlan {
                layers_directory: records.into(),
                layers: Vec::new(),
                upper: records.into(),
                work: records.into(),
                volumes: Vec::new(),
            },
            spec: serde_json::Value::Null,
            user: UserRequest::default(),
            seccomp: SeccompProfile::RuntimeDefault,
            propagation: Propagation::Private,
            cgroup: "/c".into(),
            log_path: None,
            stdin: false,
            stdin_once: false,
            tty: false,
        }
    }

    /// Makes the containers of a daemon with cgroups that are plain directories below `directory`. Its reaper
    /// does not collect: it would take the children of other tests too.
    fn containers_in(directory: &Path) -> Arc<Containers> {
        let mut containers = Containers::new(Reaper::default()).expect("cgroups");
        containers.hierarchies = Hierarchies::V2(directory.join("cgroups"));
        Arc::new(containers)
    }

    /// Starts a process in the cgroup of [`plan`].
    fn process(containers: &Containers) -> (std::process::Child, Cgroup) {
        let child = Command::new("sleep").arg("600").spawn().expect("a process");
        let cgroup = containers.hierarchies.cgroup(Path::new("/c"));
        let directory = cgroup.directory("").expect("the cgroup");
        std::fs::create_dir_all(&directory).expect("make the cgroup");
        std::fs::write(directory.join("cgroup.procs"), child.id().to_string()).expect("enter the cgroup");
        (child, cgroup)
    }

    /// Waits until the process was killed by a signal.
    async fn killed(mut child: std::process::Child) {
        let waited = tokio::task::spawn_blocking(move || child.wait().expect("wait"));
        let status = tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it ends");
        assert!(!status.expect("waited").success());
    }

    #[tokio::test]
    async fn a_panic_in_the_task_of_a_container_ends_that_container() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let containers = containers_in(directory.path());
        let (child, cgroup) = process(&containers);
        let pid = i32::try_from(child.id()).expect("a process id");
        let running = Arc::new(Running {
            plan: plan(directory.path()),
            started: StartedRecord { pid, started_at: 1, user: Default::default() },
            log: LogFile::open(None).expect("no log"),
            output: Arc::default(),
            stdin: tokio::sync::Mutex::default(),
            pty: None,
            cgroup,
        });
        containers.lock().insert("c".into(), running.clone());
        let mut ended = containers.ended.subscribe();
        containers.clone().supervised(running, async { panic!("injected") }).await;

        killed(child).await;
        let told = ended.recv().await.expect("the end is told");
        assert_eq!((told.container.as_str(), told.exit.exit_code), ("c", 255));
        let path = directory.path().join(container_file::EXIT);
        let record: ExitRecord = files::read_json(&path).expect("read").expect("a record");
        assert!(record.message.contains("injected"), "{record:?}");
        assert!(containers.get("c").is_none());
        drop(tokio::time::timeout(DRAIN, containers.kill_all()).await.expect("the pod can be stopped"));
    }

    #[tokio::test]
    async fn a_panic_while_output_is_copied_ends_the_container() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let containers = containers_in(directory.path());
        let (child, cgroup) = process(&containers);
        or_kill(async { panic!("injected") }, cgroup).await;
        killed(child).await;
    }

    /// Makes writing the record fail, as a full disk does.
    #[tokio::test]
    async fn an_end_that_cannot_be_written_is_kept_and_written_later() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let containers = Arc::new(Containers::new(Reaper::default()).expect("cgroups"));
        let path = directory.path().join(container_file::EXIT);
        std::fs::create_dir(&path).expect("something in the way");
        let exit =
            ExitRecord { exit_code: 7, finished_at: 1, reason: "Error".into(), message: String::new() };
        containers.record(&plan(directory.path()), &exit);
        assert_eq!(containers.unrecorded().get("c").map(|e| e.exit_code), Some(7));
        std::fs::remove_dir(&path).expect("out of the way");
        let written = async {
            while !containers.unrecorded().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("it is tried again");
        let record: Option<ExitRecord> = files::read_json(&path).expect("read");
        assert_eq!(record.map(|e| e.exit_code), Some(7));
    }
}
