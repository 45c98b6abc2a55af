//! A pod's shim daemon: how it is started detached from the worker, its socket, and its end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::unistd::setsid;
use proto_env::supervise::catch;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::ShimError;
use super::containers::Containers;
use super::exec_attach::{ExecRequest, attach, exec};
use super::holder;
use super::plan::ShimPlan;
use super::protocol::{Ended, Reply, ShimRequest, read_message, write_message};
use super::reaper::Reaper;
use crate::files;
use crate::paths::{sandbox_file, short_path};

/// Pause after a connection could not be accepted, usually for lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Starts the daemon of the pod whose state is in `directory` and returns once its socket listens. The daemon
/// is then a child of the machine's init.
pub(crate) fn spawn(directory: &Path) -> Result<(), ShimError> {
    let handle = File::open(directory).map_err(ShimError::io("open the pod's directory"))?;
    files::remove_file(&directory.join(sandbox_file::SHIM_SOCKET))
        .map_err(ShimError::io("remove an old socket"))?;
    let socket =
        StdListener::bind(short_path(&handle, sandbox_file::SHIM_SOCKET)).map_err(ShimError::io("listen"))?;
    let socket_file = directory.join(sandbox_file::SHIM_SOCKET);
    fs::set_permissions(socket_file, fs::Permissions::from_mode(0o600))
        .map_err(ShimError::io("protect the socket"))?;
    let log = files::create_private(&directory.join(sandbox_file::SHIM_LOG))
        .map_err(ShimError::io("open the shim's log"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ephor").args(["shim", "daemon"]).arg(directory);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .stderr(log);
    let child = command.spawn().map_err(ShimError::io("start the shim"))?;
    let text = format!("{} {}", child.id(), start_time(child.id()).unwrap_or_default());
    files::create_private(&directory.join(sandbox_file::SHIM_PID))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(ShimError::io("record the shim's process"))
}

/// Returns the process id of the daemon whose state is in `directory`; `None` if it does not run.
pub(crate) fn process(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join(sandbox_file::SHIM_PID)).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // Checks command line and start time, because the id may belong to another process
    // now, also after a reboot.
    let is_daemon = command.split(|b| *b == 0).any(|word| word == directory.as_os_str().as_encoded_bytes());
    (is_daemon && start_time(pid).as_deref() == Some(started)).then(|| i32::try_from(pid).ok()).flatten()
}

/// Returns the start time of a process in the kernel's clock ticks; together with the process id it is
/// unique. `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// Runs the daemon; its standard input is the listening socket.
pub(crate) fn run(directory: &Path) -> Result<(), ShimError> {
    setsid().map_err(ShimError::io("start a session"))?;
    set_child_subreaper(true).map_err(ShimError::io("become a subreaper"))?;
    let plan: ShimPlan = files::read_json(&directory.join(sandbox_file::SHIM_PLAN))
        .map_err(ShimError::io("read the plan"))?
        .ok_or_else(|| ShimError::Container("the pod has no plan".into()))?;
    let socket = listening_stdin().map_err(ShimError::io("take the socket"))?;
    socket.set_nonblocking(true).map_err(ShimError::io("take the socket"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ShimError::io("start"))?;
    runtime.block_on(serve(directory, &plan, socket))
}

/// Returns a duplicate of standard input as the listening socket.
fn listening_stdin() -> io::Result<StdListener> {
    use std::os::fd::AsFd;
    let owned = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(StdListener::from(owned))
}

async fn serve(directory: &Path, plan: &ShimPlan, socket: StdListener) -> Result<(), ShimError> {
    let reaper = Reaper::start().map_err(ShimError::io("watch for children"))?;
    let containers = Arc::new(Containers::new(reaper).map_err(ShimError::io("find the cgroup hierarchies"))?);
    let holder = match plan.shared_pid {
        true => Some(holder::start(&containers.reaper, directory).await?),
        false => None,
    };
    let listener = UnixListener::from_std(socket).map_err(ShimError::io("listen"))?;
    let (stop, mut stopped) = mpsc::channel(1);
    loop {
        tokio::select! {
            biased;
            Some(mut client) = stopped.recv() => {
                let _none_starts = containers.kill_all().await;
                if let Some(holder) = holder {
                    holder.end().await;
                }
                // The client that asked for the shutdown may have disconnected.
                let _ = write_message(&mut client, &Reply::Ok).await;
                return Ok(());
            }
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(session(containers.clone(), client, stop.clone()))),
                // The pod must not end because one connection failed.
                Err(error) => {
                    say!("accept: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

/// Answers one client. A panic ends only that client's session; the runtime repeats a start whose answer is
/// lost.
async fn session(containers: Arc<Containers>, client: UnixStream, stop: mpsc::Sender<UnixStream>) {
    if let Err(panic) = catch("shim-session", answer(containers, client, stop)).await {
        say!("{panic}");
    }
}

async fn answer(containers: Arc<Containers>, mut client: UnixStream, stop: mpsc::Sender<UnixStream>) {
    let request = match read_message::<ShimRequest>(&mut client).await {
        Ok(request) => request,
        Err(error) => return say!("request: {error}"),
    };
    if let ShimRequest::Shutdown = request {
        // Sending fails only if the daemon is already ending.
        return drop(stop.send(client).await);
    }
    if let Err(error) = handle(&containers, client, request).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        say!("reply: {error}");
    }
}

async fn handle(
    containers: &Arc<Containers>,
    mut client: UnixStream,
    request: ShimRequest,
) -> io::Result<()> {
    let reply = match request {
        ShimRequest::Start { bundle } => match containers.start(&bundle).await {
            Ok(started) => Reply::Started(started),
            Err(error) => Reply::Error(files::chain(&error)),
        },
        ShimRequest::Signal { container, signal, all } => match containers.signal(&container, signal, all) {
            Ok(true) => Reply::Ok,
            Ok(false) => Reply::NotRunning,
            Err(error) => Reply::Error(files::chain(&error)),
        },
        ShimRequest::ReopenLog { container } => {
            match containers.get(&container).map(|running| running.log.reopen()) {
                Some(Ok(())) => Reply::Ok,
                Some(Err(error)) => Reply::Error(error.to_string()),
                None => Reply::NotRunning,
            }
        }
        ShimRequest::Exec { container, arguments, tty, stdin } => match containers.get(&container) {
            Some(running) => {
                return exec(containers, &running, ExecRequest { arguments, tty, stdin }, client).await;
            }
            None => Reply::NotRunning,
        },
        ShimRequest::Attach { container, stdin, stdout, stderr } => match containers.get(&container) {
            Some(running) => return attach(running, stdin, (stdout, stderr), client).await,
            None => Reply::NotRunning,
        },
        ShimRequest::Watch => return watch(containers, client).await,
        ShimRequest::Shutdown => Reply::Ok,
    };
    write_message(&mut client, &reply).await
}

/// Reports ends of containers until the client disconnects. Disconnects a client that lags too far behind; it
/// reads the exit records on disk when it reconnects.
async fn watch(containers: &Containers, mut client: UnixStream) -> io::Result<()> {
    let mut ended = containers.ended.subscribe();
    write_message(&mut client, &Reply::Ok).await?;
    let unrecorded: Vec<Ended> = containers
        .unrecorded()
        .iter()
        .map(|(container, exit)| Ended { container: container.clone(), exit: exit.clone() })
        .collect();
    for event in &unrecorded {
        write_message(&mut client, event).await?;
    }
    let mut byte = [0];
    loop {
        tokio::select! {
            biased;
            event = ended.recv() => match event {
                Ok(event) => write_message(&mut client, &event).await?,
                Err(RecvError::Lagged(_) | RecvError::Closed) => return Ok(()),
            },
            // A watcher sends no data, so that its socket becomes readable only when it disconnects.
            _ = tokio::io::AsyncReadExt::read(&mut client, &mut byte) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::plan::ExitRecord;

    #[tokio::test]
    async fn who_begins_to_watch_hears_of_ends_that_are_not_on_disk() {
        let containers = Containers::new(Reaper::default()).expect("cgroups");
        let exit =
            ExitRecord { exit_code: 7, finished_at: 1, reason: "Error".into(), message: String::new() };
        containers.unrecorded().insert("c".into(), exit);
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let watching = tokio::spawn(async move { watch(&containers, theirs).await });
        assert!(matches!(read_message(&mut ours).await.expect("a reply"), Reply::Ok));
        let ended: Ended = read_message(&mut ours).await.expect("an end");
        assert_eq!((ended.container.as_str(), ended.exit.exit_code), ("c", 7));
        drop(ours);
        watching.await.expect("the watch").expect("its end");
    }

    #[test]
    fn a_process_that_took_the_shims_number_is_not_the_shim() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join(sandbox_file::SHIM_PID);
        assert_eq!(process(directory.path()), None);
        let own = std::process::id();
        fs::write(&file, format!("{own} {}", start_time(own).expect("this process"))).expect("write");
        assert_eq!(process(directory.path()), None, "it runs no shim");
        // A process that names the directory as a shim does, and waits for its input.
        let daemon = Command::new("cat").arg("-").arg(directory.path()).stdin(Stdio::piped()).spawn();
        let mut daemon = daemon.expect("cat");
        let (id, started) = (daemon.id(), start_time(daemon.id()).expect("the start of cat"));
        fs::write(&file, format!("{id} {started}")).expect("write");
        assert_eq!(process(directory.path()), i32::try_from(id).ok());
        fs::write(&file, format!("{id} 1")).expect("write");
        assert_eq!(process(directory.path()), None, "it started at another time");
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
    }
}
