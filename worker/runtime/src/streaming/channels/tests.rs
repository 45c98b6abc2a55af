//! Tests exec and attach within one process: a WebSocket client, and a shim that echoes its input.

use std::time::Duration;

use futures::stream::SplitStream;
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::paths::sandbox_file;
use crate::shim::client::ShimClient;
use crate::shim::protocol::{Reply, ShimRequest, read_message, write_message};

/// Deadline that only a hanging test exceeds.
const PATIENCE: Duration = Duration::from_secs(60);
const TOTAL: usize = 24 << 20;

/// Plays a shim whose program is `cat`: it stops reading input while its output is not read.
async fn echo(listener: UnixListener) -> io::Result<()> {
    let (mut client, _) = listener.accept().await?;
    let _: ShimRequest = read_message(&mut client).await?;
    write_message(&mut client, &Reply::Ok).await?;
    loop {
        match read_frame(&mut client).await? {
            Some(StreamFrame::Stdin(bytes)) => write_frame(&mut client, &StreamFrame::Stdout(bytes)).await?,
            Some(StreamFrame::StdinEnd) => return write_frame(&mut client, &StreamFrame::Exit(0)).await,
            _ => {}
        }
    }
}

async fn received(mut from: SplitStream<WebSocketStream<DuplexStream>>) -> (usize, String) {
    let (mut count, mut status) = (0, String::new());
    while let Some(Ok(message)) = from.next().await {
        match message.into_data().split_first() {
            Some((&STDOUT, bytes)) => count += bytes.len(),
            Some((&ERROR, bytes)) => {
                status = String::from_utf8_lossy(bytes).into_owned();
                break;
            }
            _ => {}
        }
    }
    (count, status)
}

async fn pours(ticket: impl FnOnce(ShimClient) -> Ticket) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let listener = UnixListener::bind(directory.path().join(sandbox_file::SHIM_SOCKET)).expect("listen");
    let shim = tokio::spawn(echo(listener));
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let session =
        tokio::spawn(run(server, ticket(ShimClient::new(directory.path().to_owned())), Version::V5));
    let (mut sink, stream) = WebSocketStream::from_raw_socket(ours, Role::Client, None).await.split();
    // The client writes as fast as it can.
    let writing = async move {
        let mut message = vec![7; (32 << 10) + 1];
        message[0] = STDIN;
        for _ in 0..TOTAL / (32 << 10) {
            sink.send(Message::Binary(Bytes::from(message.clone()))).await.expect("send");
        }
        sink.send(Message::Binary(Bytes::from_static(&[CLOSE, STDIN]))).await.expect("close stdin");
        sink
    };
    let both = async { tokio::join!(writing, received(stream)) };
    let (_, (count, status)) = tokio::time::timeout(PATIENCE, both).await.expect("each waits for the other");
    assert_eq!(count, TOTAL);
    assert!(status.contains("Success"), "{status}");
    session.abort();
    shim.await.expect("the shim").expect("its streams");
}

#[tokio::test]
async fn an_exec_whose_input_comes_faster_than_its_output_is_read_loses_nothing() {
    pours(|shim| Ticket::Exec {
        shim,
        container: "c".into(),
        arguments: vec!["cat".into()],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    })
    .await;
}

#[tokio::test]
async fn an_attach_whose_input_comes_faster_than_its_output_is_read_loses_nothing() {
    pours(|shim| Ticket::Attach { shim, container: "c".into(), stdin: true, stdout: true, stderr: false })
        .await;
}
