//! The protocol of a shim's socket: one request per connection, one reply, and after some requests a
//! stream of frames. Messages are JSON after a length of four bytes (little endian); frames consist of a
//! kind, a length and bytes.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Maximum length of a message or frame that either side accepts, in bytes.
const LIMIT: usize = 1 << 20;

/// Requests of the runtime to a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ShimRequest {
    /// Starts the container whose bundle is the directory.
    Start { bundle: std::path::PathBuf },
    /// Sends a signal to a container's first process, or with `all` to all processes in its cgroup.
    Signal { container: String, signal: i32, all: bool },
    /// Runs a process in a container. Frames follow the reply `Ok`.
    Exec { container: String, arguments: Vec<String>, tty: bool, stdin: bool },
    /// Attaches to a container's input and output. Frames follow the reply `Ok`.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Reopens the log by its path, after it was renamed.
    ReopenLog { container: String },
    /// Subscribes to the ends of containers; `Ended` messages follow the reply `Ok`.
    Watch,
    /// Kills the remaining processes and ends the shim.
    Shutdown,
}

/// A shim's reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Ok,
    Started(super::plan::StartedRecord),
    Error(String),
    /// The container does not run, or no longer.
    NotRunning,
}

/// A container has ended; its exit record is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub container: String,
    pub exit: super::plan::ExitRecord,
}

/// A message of an exec or attach session, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamFrame {
    Stdin(Vec<u8>),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The process ended with this exit code; the last frame of a session.
    Exit(i32),
    /// The terminal now has this many columns and rows.
    Resize(u16, u16),
    /// The client's input has ended.
    StdinEnd,
}

pub(crate) async fn write_message<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    to.write_all(&length(&bytes)?).await?;
    to.write_all(&bytes).await?;
    to.flush().await
}

pub(crate) async fn read_message<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_bytes(from).await?)?)
}

pub(crate) async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &StreamFrame) -> io::Result<()> {
    let owned;
    let (kind, bytes): (u8, &[u8]) = match frame {
        StreamFrame::Stdin(bytes) => (0, bytes),
        StreamFrame::Stdout(bytes) => (1, bytes),
        StreamFrame::Stderr(bytes) => (2, bytes),
        StreamFrame::Exit(code) => {
            owned = code.to_le_bytes();
            (3, &owned)
        }
        StreamFrame::Resize(columns, rows) => {
            let (c, r) = (columns.to_le_bytes(), rows.to_le_bytes());
            owned = [c[0], c[1], r[0], r[1]];
            (4, &owned)
        }
        StreamFrame::StdinEnd => (5, &[]),
    };
    let mut packet = Vec::with_capacity(bytes.len() + 5);
    packet.push(kind);
    packet.extend_from_slice(&length(bytes)?);
    packet.extend_from_slice(bytes);
    to.write_all(&packet).await?;
    to.flush().await
}

/// Reads the next frame; `None` if the stream ends after a complete frame.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<StreamFrame>> {
    let kind = match from.read_u8().await {
        Ok(kind) => kind,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let bytes = read_bytes(from).await?;
    let four = || <[u8; 4]>::try_from(bytes.as_slice()).map_err(|_| malformed());
    Ok(Some(match kind {
        0 => StreamFrame::Stdin(bytes),
        1 => StreamFrame::Stdout(bytes),
        2 => StreamFrame::Stderr(bytes),
        3 => StreamFrame::Exit(i32::from_le_bytes(four()?)),
        4 => {
            let [a, b, c, d] = four()?;
            StreamFrame::Resize(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
        }
        5 => StreamFrame::StdinEnd,
        _ => return Err(malformed()),
    }))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed frame")
}

fn length(bytes: &[u8]) -> io::Result<[u8; 4]> {
    match u32::try_from(bytes.len()) {
        Ok(length) if bytes.len() <= LIMIT => Ok(length.to_le_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long")),
    }
}

async fn read_bytes(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32_le().await? as usize;
    if length > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let frames = [
            StreamFrame::Stdin(b"in".to_vec()),
            StreamFrame::Stdout(vec![]),
            StreamFrame::Stderr(vec![7; 70_000]),
            StreamFrame::Exit(-1),
            StreamFrame::Resize(80, 24),
            StreamFrame::StdinEnd,
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write_frame(&mut wire, frame).await.expect("write to memory");
        }
        let mut wire = wire.as_slice();
        for frame in &frames {
            assert_eq!(read_frame(&mut wire).await.expect("read from memory").as_ref(), Some(frame));
        }
        assert_eq!(read_frame(&mut wire).await.expect("end"), None);
    }

    #[tokio::test]
    async fn a_frame_longer_than_the_limit_is_refused() {
        let wire = [1, 0xff, 0xff, 0xff, 0xff];
        assert!(read_frame(&mut wire.as_slice()).await.is_err());
    }
}
