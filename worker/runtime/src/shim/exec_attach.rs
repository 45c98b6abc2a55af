//! The daemon's side of exec and attach: starts the process of an exec through its launcher
//! (`exec_launcher`), and carries the streams of a process to and from a client on the daemon's socket.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::ShimError;
use super::containers::{Containers, Launch, Running};
use super::exec_launcher::ExecPlan;
use super::log::OutputStream;
use super::protocol::{Reply, StreamFrame, read_frame, write_frame, write_message};
use super::stdio::{InputEnd, ProcessStreams, Pty, forward};
use crate::files;

/// Maximum pause in the output, after the process ended, before output that other
/// processes hold open is given up.
const DRAIN: Duration = Duration::from_secs(2);
/// Maximum number of frames queued for a client.
const QUEUE: usize = 16;

/// A process that a client asks to run in a container.
pub(crate) struct ExecRequest {
    pub arguments: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// Runs a process in a container and carries its streams over `client` until it ends. Kills the process
/// if the client disconnects.
pub(crate) async fn exec(
    containers: &Containers,
    running: &Running,
    request: ExecRequest,
    mut client: UnixStream,
) -> io::Result<()> {
    let mark = containers.reaper.mark();
    let mut streams = match request.tty {
        true => ProcessStreams::terminal(),
        false => ProcessStreams::pipes(request.stdin)?,
    };
    let (pid, pty) = match launch(containers, running, &request, &mut streams).await {
        Ok(process) => process,
        Err(error) => return write_message(&mut client, &Reply::Error(files::chain(&error))).await,
    };
    let exit = containers.reaper.wait(pid, mark);
    tokio::pin!(exit);
    let mut process = ExecProcess(Some(pid));
    if let Err(error) = write_message(&mut client, &Reply::Ok).await {
        // The client has disconnected already.
        kill_and_wait(pid, &mut exit).await;
        process.0 = None;
        return Err(error);
    }

    let (frames, mut queue) = mpsc::channel(QUEUE);
    let pairs =
        [(streams.stdout.take(), OutputStream::Stdout), (streams.stderr.take(), OutputStream::Stderr)];
    for (source, stream) in pairs {
        if let Some(source) = source {
            tokio::spawn(forward(source, stream, frames.clone()));
        }
    }
    drop(frames);
    let (reader, mut writer) = client.into_split();
    let sink = if request.stdin { streams.stdin.take() } else { None };
    let mut input = tokio::spawn(feed(reader, sink, pty));
    let code = loop {
        tokio::select! {
            biased;
            code = &mut exit => break code.unwrap_or(255),
            Some(frame) = queue.recv() => {
                if write_frame(&mut writer, &frame).await.is_err() {
                    break kill_and_wait(pid, &mut exit).await;
                }
            }
            gone = &mut input => match gone {
                // The program closed its input, but may still write output.
                Ok(ClosedBy::Program) => input = tokio::spawn(std::future::pending()),
                // After a panic nobody would notice that the client disconnects.
                Ok(ClosedBy::Client) | Err(_) => break kill_and_wait(pid, &mut exit).await,
            },
        }
    };
    process.0 = None;
    input.abort();
    // The timeout limits only the wait for more output, not the time the client takes to read it.
    while let Ok(Some(frame)) = tokio::time::timeout(DRAIN, queue.recv()).await {
        write_frame(&mut writer, &frame).await?;
    }
    write_frame(&mut writer, &StreamFrame::Exit(code)).await?;
    writer.shutdown().await
}

/// The process of an exec, killed when the session ends by a panic; `None` once it has ended.
struct ExecProcess(Option<i32>);

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Fails if the process has ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn kill_and_wait(
    pid: i32,
    exit: &mut (impl Future<Output = Result<i32, tokio::sync::oneshot::error::RecvError>> + Unpin),
) -> i32 {
    // Fails if the process has ended by itself.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    exit.await.unwrap_or(255)
}

async fn launch(
    containers: &Containers,
    running: &Running,
    request: &ExecRequest,
    streams: &mut ProcessStreams,
) -> Result<(i32, Option<Arc<Pty>>), ShimError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let bundle = &running.plan.bundle;
    let name = |what: &str| -> PathBuf { bundle.join(format!("exec-{number}.{what}")) };
    let (process, result) = (name("process.json"), name("result.json"));
    let console = format!("exec-{number}.sock");
    let plan = ExecPlan {
        arguments: request.arguments.clone(),
        console: request.tty.then(|| bundle.join(&console)),
    };
    files::write_json(&process, &plan).map_err(ShimError::io("write the process"))?;
    let launch = Launch {
        verb: "exec",
        directory: bundle,
        arguments: &[&process, &result],
        result: &result,
        console: request.tty.then_some(console.as_str()),
    };
    let outcome = launch.run(&containers.reaper, streams).await;
    for file in [&process, &result] {
        files::remove_file(file).map_err(ShimError::io("remove an exec's file"))?;
    }
    outcome.map(|(process, pty)| (process.pid, pty))
}

/// The side that closed the input: the client disconnected, or the program closed it.
enum ClosedBy {
    Client,
    Program,
}

/// Carries input from a client to a process until the client disconnects or the program closes it.
async fn feed(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut sink: Option<InputEnd>,
    pty: Option<Arc<Pty>>,
) -> ClosedBy {
    loop {
        match read_frame(&mut from).await {
            Ok(Some(StreamFrame::Stdin(bytes))) => {
                if let Some(sink) = &mut sink
                    && sink.write_all(&bytes).await.is_err()
                {
                    return ClosedBy::Program;
                }
            }
            Ok(Some(StreamFrame::StdinEnd)) => sink = end_of_input(sink).await,
            Ok(Some(StreamFrame::Resize(columns, rows))) => {
                if let Some(pty) = &pty
                    && let Err(error) = pty.resize(columns, rows)
                {
                    say!("resize: {error}");
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return ClosedBy::Client,
        }
    }
}

/// Signals the end of input: closes a pipe; on a terminal, which stays open, types ^D as a user would.
async fn end_of_input(sink: Option<InputEnd>) -> Option<InputEnd> {
    match sink {
        Some(mut sink @ InputEnd::Pty(_)) => {
            // 4 is ^D; if the program ignores it, it runs until the client disconnects.
            let _ = sink.write_all(&[4]).await;
            Some(sink)
        }
        _ => None,
    }
}

/// Carries a container's streams over `client` until the container ends or the client disconnects.
pub(crate) async fn attach(
    running: Arc<Running>,
    stdin: bool,
    streams: (bool, bool),
    mut client: UnixStream,
) -> io::Result<()> {
    let (frames, mut queue) = mpsc::channel(QUEUE);
    running.output.attach(frames);
    write_message(&mut client, &Reply::Ok).await?;
    let (mut reader, mut writer) = client.into_split();
    let feeding = running.clone();
    let mut input = tokio::spawn(async move {
        loop {
            match read_frame(&mut reader).await {
                Ok(Some(StreamFrame::Stdin(bytes))) if stdin => {
                    if let Some(sink) = feeding.stdin.lock().await.as_mut()
                        && sink.write_all(&bytes).await.is_err()
                    {
                        break;
                    }
                }
                Ok(Some(StreamFrame::Resize(columns, rows))) => {
                    if let Some(pty) = &feeding.pty
                        && let Err(error) = pty.resize(columns, rows)
                    {
                        say!("resize: {error}");
                    }
                }
                Ok(Some(StreamFrame::StdinEnd)) if stdin && feeding.plan.stdin_once => {
                    let mut sink = feeding.stdin.lock().await;
                    *sink = end_of_input(sink.take()).await;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    });
    loop {
        tokio::select! {
            biased;
            frame = queue.recv() => match frame {
                Some(frame @ StreamFrame::Exit(_)) => {
                    write_frame(&mut writer, &frame).await?;
                    break;
                }
                Some(StreamFrame::Stdout(_)) if !streams.0 => {}
                Some(StreamFrame::Stderr(_)) if !streams.1 => {}
                Some(frame) => write_frame(&mut writer, &frame).await?,
                None => break,
            },
            _ = &mut input => break,
        }
    }
    input.abort();
    if stdin && running.plan.stdin_once {
        running.stdin.lock().await.take();
    }
    writer.shutdown().await
}
