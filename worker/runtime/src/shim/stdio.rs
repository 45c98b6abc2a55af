//! The daemon's ends of a process's standard streams, pipes or one pseudo-terminal, and the copying of output
//! to the log and to attached clients.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::log::{LineWriter, OutputStream};
use super::protocol::StreamFrame;
use crate::paths::short_path;

/// Maximum time that an attached client may block a container's output before the client is dropped.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// Name of the socket in a bundle over which a launcher passes the terminal.
pub(crate) const CONSOLE: &str = "console.sock";

/// The master side of a pseudo-terminal.
pub(crate) struct Pty(AsyncFd<OwnedFd>);

impl Pty {
    #[allow(
        unsafe_code,
        reason = "registering is sound for a descriptor that is owned until it is deregistered"
    )]
    fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(unsafe { AsyncFd::register(master) }?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await;
        match read {
            // Linux reports EIO once no process has the terminal's other side open.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Sets the terminal's size in characters, which signals the change to the program.
    #[allow(
        unsafe_code,
        reason = "TIOCSWINSZ has no safe wrapper; the pointer is to a live winsize, the fd is owned"
    )]
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let outcome = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The daemon's reading end of a process's output stream.
pub(crate) enum OutputEnd {
    Pipe(pipe::Receiver),
    Pty(Arc<Pty>),
}

impl OutputEnd {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Pty(pty) => pty.read(buffer).await,
        }
    }
}

/// The daemon's writing end of a process's input.
pub(crate) enum InputEnd {
    Pipe(pipe::Sender),
    Pty(Arc<Pty>),
}

impl InputEnd {
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Pty(pty) => pty.write_all(bytes).await,
        }
    }
}

/// Both ends of the standard streams of a process that has yet to be started.
pub(crate) struct ProcessStreams {
    /// The process's ends: input, output, error.
    pub child: [Stdio; 3],
    /// The daemon's end of the input; `None` if the process reads from `/dev/null`, or has a terminal that no
    /// [`Console`] has received yet. `None` means the same for the two ends below.
    pub stdin: Option<InputEnd>,
    pub stdout: Option<OutputEnd>,
    pub stderr: Option<OutputEnd>,
}

impl ProcessStreams {
    /// Makes pipes; without `stdin` the process reads from `/dev/null`.
    pub fn pipes(stdin: bool) -> io::Result<Self> {
        let (our_out, out) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_err, err) = pipe2(OFlag::O_CLOEXEC)?;
        let (input, ours) = match stdin {
            true => {
                let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
                (Stdio::from(theirs), Some(InputEnd::Pipe(pipe::Sender::from_owned_fd(ours)?)))
            }
            false => (Stdio::null(), None),
        };
        Ok(Self {
            child: [input, Stdio::from(out), Stdio::from(err)],
            stdin: ours,
            stdout: Some(OutputEnd::Pipe(pipe::Receiver::from_owned_fd(our_out)?)),
            stderr: Some(OutputEnd::Pipe(pipe::Receiver::from_owned_fd(our_err)?)),
        })
    }

    /// Makes no pipes, for a process that gets a terminal.
    pub fn terminal() -> Self {
        Self { child: [Stdio::null(), Stdio::null(), Stdio::null()], stdin: None, stdout: None, stderr: None }
    }

    /// Uses the process's terminal as input and output.
    pub fn take_terminal(&mut self, pty: &Arc<Pty>) {
        self.stdin = Some(InputEnd::Pty(pty.clone()));
        self.stdout = Some(OutputEnd::Pty(pty.clone()));
    }
}

/// Socket that receives the terminal which libcontainer makes within a container.
pub(crate) struct Console {
    listener: UnixListener,
    path: std::path::PathBuf,
}

impl Console {
    /// Listens on the socket `name` in `directory`.
    pub fn listen(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        crate::files::remove_file(&path)?;
        let handle = File::open(directory)?;
        Ok(Self { listener: UnixListener::bind(short_path(&handle, name))?, path })
    }

    pub async fn receive(&self) -> io::Result<Arc<Pty>> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || receive_descriptor(&stream)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                other => return Ok(Arc::new(Pty::new(other?)?)),
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A socket file that stays behind is removed together with the bundle.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[allow(unsafe_code, reason = "SCM_RIGHTS arrives as a raw descriptor that nobody else owns")]
fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut data = [0; 64];
    let mut vectors = [io::IoSliceMut::new(&mut data)];
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut vectors, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            return Ok(unsafe { OwnedFd::from_raw_fd(*descriptor) });
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no terminal was handed over"))
}

/// The clients that are attached to a container's output.
#[derive(Default)]
pub(crate) struct Output {
    readers: Mutex<Vec<mpsc::Sender<StreamFrame>>>,
}

impl Output {
    /// Adds a client, which receives the output from now on and the exit code.
    pub fn attach(&self, reader: mpsc::Sender<StreamFrame>) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
    }

    async fn send(&self, frame: StreamFrame) {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for reader in readers {
            if reader.send_timeout(frame.clone(), READER_PATIENCE).await.is_err() {
                let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
                readers.retain(|r| !r.same_channel(&reader));
            }
        }
    }

    /// Sends the exit code to all attached clients and detaches them.
    pub async fn end(&self, code: i32) {
        self.send(StreamFrame::Exit(code)).await;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Copies one output stream to the log and to attached clients until its end.
pub(crate) async fn copy(
    mut source: OutputEnd,
    mut log: LineWriter,
    stream: OutputStream,
    output: Arc<Output>,
) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => {
                log.push(&buffer[..count]);
                output.send(frame(stream, &buffer[..count])).await;
            }
            Err(error) => {
                say!("read container output: {error}");
                break;
            }
        }
    }
    log.finish();
}

/// Copies one output stream into a channel until its end, or until the channel's receiver is gone.
pub(crate) async fn forward(mut source: OutputEnd, stream: OutputStream, to: mpsc::Sender<StreamFrame>) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        if to.send(frame(stream, &buffer[..count])).await.is_err() {
            break;
        }
    }
}

fn frame(stream: OutputStream, bytes: &[u8]) -> StreamFrame {
    match stream {
        OutputStream::Stdout => StreamFrame::Stdout(bytes.to_vec()),
        OutputStream::Stderr => StreamFrame::Stderr(bytes.to_vec()),
    }
}
