//! Port-forward: each pair of SPDY streams, one for data and one for the error text, is one TCP connection to
//! the pod's loopback address.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdTcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::{CANCEL, SpdyEvent, SpdyReader, SpdyWriter};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of queued data pieces for one connection, and of queued frames for the client.
const QUEUE: usize = 64;
/// Maximum number of connections of one client at a time, and of pairs of streams that it has half opened.
const CONNECTIONS: usize = 1024;
/// Maximum number of bytes from one client that wait for the pod's connections. At least the size of a frame.
const WAITING_BYTES: u32 = 16 << 20;

/// Data from the client that waits for a connection, and counts against [`WAITING_BYTES`] until it is dropped.
type Waiting = (Vec<u8>, OwnedSemaphorePermit);

/// A frame from one of the pod's connections, to be written to the client.
enum OutgoingFrame {
    Data { stream: u32, bytes: Vec<u8>, ended: bool },
    Reset { stream: u32 },
}

/// Serves SPDY carried in the binary messages of a WebSocket.
pub(super) async fn tunnelled(socket: WebSocketStream<TokioIo<Upgraded>>, namespace: Option<PathBuf>) {
    let (outer, inner) = tokio::io::duplex(256 << 10);
    let (mut from_client, mut to_client) = (StreamSplit::new(socket), tokio::io::split(outer));
    let session = tokio::spawn(run(inner, namespace));
    let (reader, writer) = (&mut to_client.0, &mut to_client.1);
    if let Err(error) = from_client.pump(reader, writer).await {
        tracing::debug!(%error, "port-forward tunnel");
    }
    session.abort();
}

/// Sending and receiving half of a WebSocket.
struct StreamSplit {
    sink: futures::stream::SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>,
    stream: futures::stream::SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
}

impl StreamSplit {
    fn new(socket: WebSocketStream<TokioIo<Upgraded>>) -> Self {
        let (sink, stream) = socket.split();
        Self { sink, stream }
    }

    /// Copies received messages to `writer` and the bytes of `reader` into messages, until either side ends.
    async fn pump(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let Self { sink, stream } = self;
        let incoming = async {
            while let Some(message) = stream.next().await {
                match message.map_err(io::Error::other)? {
                    Message::Binary(bytes) => writer.write_all(&bytes).await?,
                    Message::Close(_) => return Ok(()),
                    _ => {}
                }
            }
            Ok(())
        };
        let outgoing = async {
            let mut buffer = vec![0; 32 << 10];
            loop {
                let count = reader.read(&mut buffer).await?;
                if count == 0 {
                    return sink.close().await.map_err(io::Error::other);
                }
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
                sink.send(message).await.map_err(io::Error::other)?;
            }
        };
        tokio::select! {
            biased;
            ended = incoming => ended,
            ended = outgoing => ended,
        }
    }
}

/// Serves port-forward streams over `stream` until the client disconnects.
pub(super) async fn run(stream: impl AsyncRead + AsyncWrite + Send + 'static, namespace: Option<PathBuf>) {
    if let Err(error) = serve(stream, namespace).await {
        tracing::debug!(%error, "port-forward");
    }
}

/// The data and error stream of one connection, as far as the client has opened them.
#[derive(Default)]
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
    port: u16,
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    namespace: Option<PathBuf>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let mut writer = SpdyWriter::new(writer)?;
    let mut events = events(reader);
    let (outgoing, mut queue) = mpsc::channel::<OutgoingFrame>(QUEUE);
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    let mut connections: BTreeMap<u32, mpsc::Sender<Waiting>> = BTreeMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(frame) = queue.recv() => match frame {
                OutgoingFrame::Data { stream, bytes, ended } => writer.data(stream, &bytes, ended).await?,
                OutgoingFrame::Reset { stream } => writer.reset(stream, CANCEL).await?,
            },
            Some(_) = tasks.join_next() => {}
            event = events.recv() => match event {
                None | Some((SpdyEvent::GoAway, _)) => return Ok(()),
                Some((SpdyEvent::Ping(id), _)) => writer.pong(id).await?,
                Some((SpdyEvent::Reset { stream }, _)) => drop(connections.remove(&stream)),
                Some((SpdyEvent::Data { stream, bytes, ended }, permit)) => {
                    if let Some(connection) = connections.get(&stream)
                        && let Some(permit) = permit
                        && !forward(connection, (bytes, permit), &mut queue, &mut writer).await?
                    {
                        connections.remove(&stream);
                    }
                    if ended {
                        connections.remove(&stream);
                    }
                }
                Some((SpdyEvent::Open { stream, headers }, _)) => {
                    if tasks.len() >= CONNECTIONS || pairs.len() >= CONNECTIONS {
                        writer.reset(stream, CANCEL).await?;
                        continue;
                    }
                    writer.reply(stream).await?;
                    if let Some((data, error, port)) = complete(&mut pairs, stream, &headers) {
                        let (sender, receiver) = mpsc::channel(QUEUE);
                        connections.insert(data, sender);
                        tasks.spawn(connection(port, namespace.clone(), (data, error), receiver, outgoing.clone()));
                    }
                }
            },
        }
    }
}

/// Sends data to a connection. While the connection is busy, writes queued frames to the client, to avoid a
/// deadlock of both sides. Returns false if the connection has ended.
async fn forward<W: AsyncWrite + Unpin>(
    to: &mpsc::Sender<Waiting>,
    data: Waiting,
    queue: &mut mpsc::Receiver<OutgoingFrame>,
    writer: &mut SpdyWriter<W>,
) -> io::Result<bool> {
    let permit = to.reserve();
    tokio::pin!(permit);
    loop {
        tokio::select! {
            biased;
            permit = &mut permit => match permit {
                Ok(permit) => {
                    permit.send(data);
                    return Ok(true);
                }
                Err(_) => return Ok(false),
            },
            Some(frame) = queue.recv() => match frame {
                OutgoingFrame::Data { stream, bytes, ended } => writer.data(stream, &bytes, ended).await?,
                OutgoingFrame::Reset { stream } => writer.reset(stream, CANCEL).await?,
            },
        }
    }
}

/// Reads the client's frames in a task of its own, while the data read before leaves room. Data comes with its
/// permit; other events and empty data have none.
fn events(
    reader: impl AsyncRead + Unpin + Send + 'static,
) -> mpsc::Receiver<(SpdyEvent, Option<OwnedSemaphorePermit>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let room = Arc::new(Semaphore::new(WAITING_BYTES as usize));
    tokio::spawn(async move {
        let mut reader = SpdyReader::new(reader);
        loop {
            match reader.next().await {
                Ok(Some(event)) => {
                    let size = match &event {
                        SpdyEvent::Data { bytes, .. } => u32::try_from(bytes.len()).unwrap_or(WAITING_BYTES),
                        _ => 0,
                    };
                    let room = room.clone().acquire_many_owned(size.min(WAITING_BYTES));
                    let permit = tokio::select! {
                        biased;
                        () = sender.closed() => return,
                        permit = room => permit.ok().filter(|_| size > 0),
                    };
                    if sender.send((event, permit)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "port-forward frame");
                    return;
                }
            }
        }
    });
    receiver
}

/// Registers a stream; returns data stream, error stream and port once both streams of its pair are open.
fn complete(
    pairs: &mut BTreeMap<String, Pair>,
    stream: u32,
    headers: &[(String, String)],
) -> Option<(u32, u32, u16)> {
    let get =
        |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    // Without a request id, the error stream is the client's stream right before its
    // data stream (number less 2).
    let error = get("streamtype") == Some("error");
    let fallback = if error { stream } else { stream.saturating_sub(2) };
    let id = get("requestid").map_or_else(|| fallback.to_string(), str::to_owned);
    let pair = pairs.entry(id.clone()).or_default();
    pair.port = get("port").and_then(|p| p.parse().ok()).unwrap_or(pair.port);
    match error {
        true => pair.error = Some(stream),
        false => pair.data = Some(stream),
    }
    let (data, error, port) = (pair.data?, pair.error?, pair.port);
    pairs.remove(&id);
    Some((data, error, port))
}

/// Connects to the pod's port and carries bytes both ways until either side ends.
async fn connection(
    port: u16,
    namespace: Option<PathBuf>,
    (data, error): (u32, u32),
    mut input: mpsc::Receiver<Waiting>,
    outgoing: mpsc::Sender<OutgoingFrame>,
) {
    let connected = tokio::task::spawn_blocking(move || connect(port, namespace.as_deref())).await;
    let connected = connected.map_err(io::Error::other).and_then(|c| c).and_then(|stream| {
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    });
    let outcome = match connected {
        Ok(stream) => copy(stream, data, &mut input, &outgoing).await,
        Err(e) => {
            Err(io::Error::other(format!("failed to connect to localhost:{port} inside namespace: {e}")))
        }
    };
    let failed = outcome.is_err();
    let text = outcome
        .err()
        .map(|e| format!("error forwarding port {port} to pod: {e}").into_bytes())
        .unwrap_or_default();
    // Sending fails only if the client has disconnected.
    let _ = outgoing.send(OutgoingFrame::Data { stream: error, bytes: text, ended: true }).await;
    if failed {
        let _ = outgoing.send(OutgoingFrame::Reset { stream: data }).await;
    }
}

async fn copy(
    stream: TcpStream,
    data: u32,
    input: &mut mpsc::Receiver<Waiting>,
    outgoing: &mpsc::Sender<OutgoingFrame>,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone");
    let to_pod = async {
        while let Some((bytes, _counted)) = input.recv().await {
            writer.write_all(&bytes).await?;
        }
        writer.shutdown().await
    };
    let from_pod = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = reader.read(&mut buffer).await?;
            let frame =
                OutgoingFrame::Data { stream: data, bytes: buffer[..count].to_vec(), ended: count == 0 };
            outgoing.send(frame).await.map_err(|_| gone())?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    // The connection ends with the pod's output: after that the pod's side needs no more input.
    tokio::pin!(to_pod, from_pod);
    tokio::select! {
        biased;
        ended = &mut from_pod => ended,
        ended = &mut to_pod => {
            ended?;
            from_pod.await
        }
    }
}

/// Connects to the port on the pod's loopback address. The socket is made by a thread that has entered the
/// pod's network namespace, because a socket belongs to the namespace it was made in. Blocks.
fn connect(port: u16, namespace: Option<&Path>) -> io::Result<StdTcpStream> {
    let namespace = namespace.map(File::open).transpose()?;
    let thread = std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        StdTcpStream::connect_timeout(&v4, CONNECT_TIMEOUT).or_else(|error| {
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            StdTcpStream::connect_timeout(&v6, CONNECT_TIMEOUT).map_err(|_| error)
        })
    })?;
    thread.join().map_err(|_| io::Error::other("the connecting thread died"))?
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use tokio::net::TcpListener;

    use super::*;
    use crate::streaming::spdy::{dictionary, length};

    const PIECE: usize = 32 << 10;
    const PIECES: usize = 512;
    /// Deadline that only a hanging test exceeds.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Returns the frames that open the pair of streams to `port`: errors on stream 1, data on stream 3.
    fn opening(port: u16) -> Vec<u8> {
        opened(&[(1, "error"), (3, "data")], port)
    }

    /// Returns the frames that open streams of these numbers and types to `port`.
    fn opened(streams: &[(u32, &str)], port: u16) -> Vec<u8> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).expect("dictionary");
        let mut wire = Vec::new();
        for (stream, kind) in streams {
            let port = port.to_string();
            let mut plain = 2u32.to_be_bytes().to_vec();
            for text in ["streamtype", *kind, "port", port.as_str()] {
                plain.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(512);
            compress.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("compress");
            let mut body = stream.to_be_bytes().to_vec();
            body.extend_from_slice(&[0; 6]);
            body.extend_from_slice(&block);
            wire.extend_from_slice(&[0x80, 3, 0, 1]);
            wire.extend_from_slice(&length(body.len(), 0).expect("short"));
            wire.extend_from_slice(&body);
        }
        wire
    }

    /// Returns the number of bytes received on stream 3 until it ends.
    async fn received(mut from: impl AsyncRead + Unpin) -> io::Result<usize> {
        let mut total = 0;
        loop {
            let mut head = [0; 8];
            from.read_exact(&mut head).await?;
            let mut body = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            from.read_exact(&mut body).await?;
            if head[..4] == 3u32.to_be_bytes() {
                total += body.len();
                if head[4] & 1 == 1 {
                    return Ok(total);
                }
            }
        }
    }

    #[tokio::test]
    async fn half_opened_pairs_are_bounded() {
        let streams: Vec<(u32, &str)> = (0..=CONNECTIONS).map(|n| (2 * n as u32 + 1, "error")).collect();
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let session = tokio::spawn(run(theirs, None));
        let (mut reader, mut writer) = tokio::io::split(ours);
        let wire = opened(&streams, 80);
        let writing = tokio::spawn(async move { writer.write_all(&wire).await.map(|()| writer) });
        let mut replies = 0;
        loop {
            let mut head = [0; 8];
            let reading = tokio::time::timeout(PATIENCE, reader.read_exact(&mut head)).await;
            reading.expect("the last one is refused").expect("read");
            let mut body = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            reader.read_exact(&mut body).await.expect("read");
            // RST_STREAM has type 3.
            if head[3] == 3 {
                break;
            }
            replies += 1;
        }
        assert_eq!(replies, CONNECTIONS);
        writing.await.expect("written").expect("write");
        session.abort();
    }

    /// A pod that does not read must not let its client fill the node's memory.
    #[tokio::test]
    async fn what_a_client_sends_and_nobody_takes_is_bounded() {
        let (mut ours, theirs) = tokio::io::duplex(64 << 10);
        let mut waiting = events(theirs);
        let piece = 1 << 20;
        let writing = async {
            for sent in 0u64.. {
                let mut frame = 3u32.to_be_bytes().to_vec();
                frame.extend_from_slice(&length(piece, 0).expect("short"));
                frame.resize(frame.len() + piece, 7);
                if tokio::time::timeout(Duration::from_secs(2), ours.write_all(&frame)).await.is_err() {
                    return sent;
                }
            }
            0
        };
        let sent = writing.await;
        assert!(sent <= u64::from(WAITING_BYTES) / piece as u64 + 1, "{sent} MiB were taken");
        // What is taken makes room again.
        drop(waiting.recv().await.expect("data"));
        tokio::time::timeout(PATIENCE, ours.write_all(&[0])).await.expect("it reads on").expect("write");
    }

    /// The pod's program stops reading its input while its output is not read.
    #[tokio::test]
    async fn more_than_all_buffers_hold_passes_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let (mut reader, mut writer) = stream.into_split();
            tokio::io::copy(&mut reader, &mut writer).await.expect("echo");
        });
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let session = tokio::spawn(run(theirs, None));
        let (reader, mut writer) = tokio::io::split(ours);
        let writing = async {
            writer.write_all(&opening(port)).await?;
            for piece in 1..=PIECES {
                let ended = u8::from(piece == PIECES);
                let mut frame = 3u32.to_be_bytes().to_vec();
                frame.extend_from_slice(&length(PIECE, ended)?);
                frame.resize(frame.len() + PIECE, 7);
                writer.write_all(&frame).await?;
            }
            Ok(())
        };
        let both = async { tokio::try_join!(writing, received(reader)) };
        let ended = tokio::time::timeout(PATIENCE, both).await.expect("each waits for the other");
        assert_eq!(ended.expect("both directions").1, PIECE * PIECES);
        session.abort();
    }
}
