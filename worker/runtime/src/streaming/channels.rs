//! The WebSocket subprotocols `v4.channel.k8s.io` and `v5.channel.k8s.io`: the first byte of each message is
//! the number of the stream that the rest belongs to (client-go's `remotecommand`).

use std::io;
use std::time::Duration;

use futures::{Sink, SinkExt, StreamExt};
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::Ticket;
use crate::shim::client::ShimClientError;
use crate::shim::protocol::{StreamFrame, read_frame, write_frame};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Channel whose message names the channel that the client closes; version 5 only.
const CLOSE: u8 = 255;

/// Maximum number of bytes of standard input in one frame to the shim.
const PIECE: usize = 256 << 10;

/// Close frame of a session that ended normally.
const NORMAL: CloseFrame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
/// Maximum time to wait for the client's answer to a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The WebSocket subprotocol of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V5,
}

impl Version {
    /// Chooses the newest subprotocol that the client offers; `None` if it offers neither.
    pub fn choose(offered: &[String]) -> Option<Self> {
        [Self::V5, Self::V4].into_iter().find(|v| offered.iter().any(|o| Some(o.as_str()) == v.name()))
    }

    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        })
    }
}

/// A terminal's size as client-go sends it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Carries an exec or attach session over the socket until either side ends it.
pub(super) async fn run<S>(mut socket: WebSocketStream<S>, ticket: Ticket, version: Version)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (opened, wanted, command) = match ticket {
        Ticket::Exec { shim, container, arguments, tty, stdin, stdout, stderr } => {
            let opened = shim.exec(&container, &arguments, tty, stdin).await;
            (opened, (stdin, stdout, stderr), Some(arguments))
        }
        Ticket::Attach { shim, container, stdin, stdout, stderr } => {
            (shim.attach(&container, stdin, stdout, stderr).await, (stdin, stdout, stderr), None)
        }
        Ticket::PortForward { .. } => return,
    };
    let outcome = match opened {
        Ok(stream) => carry(&mut socket, stream, wanted, command.as_deref(), version).await,
        Err(error) => send(&mut socket, ERROR, &failure(&error)).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "exec or attach stream");
    }
    finish(socket).await;
}

/// Closes with "normal closure", which client-go takes as the end of the streams (an empty close frame is an
/// error to it), and waits for the client's answer, so that a reset does not discard output.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>) {
    let end = async {
        if socket.close(Some(NORMAL)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, end).await.is_err() {
        tracing::debug!("the client does not answer the close of an exec or attach");
    }
}

async fn send(
    to: &mut (impl Sink<Message, Error = Error> + Unpin),
    channel: u8,
    bytes: &[u8],
) -> io::Result<()> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    to.send(Message::Binary(Bytes::from(message))).await.map_err(io::Error::other)
}

/// Carries both directions concurrently: a program that blocks on its output reads no input, so neither
/// direction may wait for the other.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    stream: UnixStream,
    (stdin, stdout, stderr): (bool, bool, bool),
    command: Option<&[String]>,
    version: Version,
) -> io::Result<()> {
    // An empty message on the lowest channel tells the client that the streams are open.
    let lowest = match (stdout, stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    send(socket, lowest, &[]).await?;
    let (mut reader, mut writer) = stream.into_split();
    let (mut to_client, mut from_client) = socket.split();
    let incoming = async {
        loop {
            match from_client.next().await {
                Some(Ok(Message::Binary(bytes))) => input(&mut writer, &bytes, stdin, version).await?,
                // Older clients send text messages, whose bytes are treated like those of binary messages.
                Some(Ok(Message::Text(text))) => input(&mut writer, text.as_bytes(), stdin, version).await?,
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
    };
    let outgoing = async {
        loop {
            match read_frame(&mut reader).await? {
                Some(StreamFrame::Stdout(bytes)) if stdout => send(&mut to_client, STDOUT, &bytes).await?,
                Some(StreamFrame::Stderr(bytes)) if stderr => send(&mut to_client, STDERR, &bytes).await?,
                Some(StreamFrame::Exit(code)) => {
                    return send(&mut to_client, ERROR, &exit_status(code, command)).await;
                }
                Some(_) => {}
                None => return send(&mut to_client, ERROR, &success()).await,
            }
        }
    };
    tokio::select! {
        biased;
        ended = outgoing => ended,
        // The client has disconnected.
        ended = incoming => ended,
    }
}

/// Forwards one message of the client to the shim.
async fn input(
    to: &mut tokio::net::unix::OwnedWriteHalf,
    message: &[u8],
    stdin: bool,
    version: Version,
) -> io::Result<()> {
    let Some((channel, bytes)) = message.split_first() else { return Ok(()) };
    let outcome = match *channel {
        STDIN if stdin => {
            let mut outcome = Ok(());
            for piece in bytes.chunks(PIECE) {
                outcome = outcome.and(write_frame(to, &StreamFrame::Stdin(piece.to_vec())).await);
            }
            outcome
        }
        RESIZE => match serde_json::from_slice::<Size>(bytes) {
            Ok(size) => write_frame(to, &StreamFrame::Resize(size.width, size.height)).await,
            Err(error) => {
                tracing::debug!(%error, "terminal size");
                Ok(())
            }
        },
        CLOSE if version == Version::V5 && bytes == [STDIN] => write_frame(to, &StreamFrame::StdinEnd).await,
        _ => Ok(()),
    };
    match outcome {
        // The process ended while the client was still sending: its exit code follows.
        Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        other => other,
    }
}

fn success() -> Vec<u8> {
    json!({ "metadata": {}, "status": "Success" }).to_string().into_bytes()
}

/// Returns the JSON status that tells the client how the process ended.
fn exit_status(code: i32, command: Option<&[String]>) -> Vec<u8> {
    // For an attach, the container's exit code is not reported as the client's error.
    let Some(command) = command.filter(|_| code != 0) else { return success() };
    let status: Value = json!({
        "metadata": {},
        "status": "Failure",
        "message": format!(
            "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
            command.join(" ")
        ),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    });
    status.to_string().into_bytes()
}

fn failure(error: &ShimClientError) -> Vec<u8> {
    let status = json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: error executing command in container: {error}"),
        "reason": "InternalError",
        "details": { "causes": [{ "message": format!("error executing command in container: {error}") }] },
        "code": 500,
    });
    status.to_string().into_bytes()
}

#[cfg(test)]
mod tests;
