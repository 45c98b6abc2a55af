//! Tests the streaming server with a client like client-go's: exec and attach over WebSocket channels,
//! port-forward, and a pull from a registry. Needs root.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use crate::test_runtime::{PATIENCE, TestRuntime, ended, images, is_root, until};
use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use k8s_cri::v1;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Bytes, Message};

type Socket = WebSocketStream<TcpStream>;

async fn open(url: &str, protocol: &'static str) -> Result<Socket> {
    let rest = url.strip_prefix("http://").context("no HTTP address")?;
    let host = rest.split('/').next().context("no host")?;
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
    let (socket, response) =
        tokio_tungstenite::client_async(request, TcpStream::connect(host).await?).await?;
    ensure!(response.headers()["sec-websocket-protocol"] == protocol.split(',').next().unwrap_or_default());
    Ok(socket)
}

async fn send(socket: &mut Socket, channel: u8, bytes: &[u8]) -> Result<()> {
    let mut message = vec![channel];
    message.extend_from_slice(bytes);
    Ok(socket.send(Message::Binary(Bytes::from(message))).await?)
}

/// Returns everything received until the server closes, by channel.
async fn receive(socket: &mut Socket) -> Result<BTreeMap<u8, Vec<u8>>> {
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.context("the server does not close")? {
            Some(Ok(Message::Binary(bytes))) => {
                let (channel, rest) = bytes.split_first().context("empty message")?;
                channels.entry(*channel).or_default().extend_from_slice(rest);
            }
            Some(Ok(Message::Close(_))) | None => return Ok(channels),
            Some(Ok(_)) => {}
            Some(Err(error)) => bail!("{error}"),
        }
    }
}

fn exec_request(container: &str, script: &str, tty: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.into(),
        cmd: vec!["/bin/sh".into(), "-c".into(), script.into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    }
}

fn text(channels: &BTreeMap<u8, Vec<u8>>, channel: u8) -> String {
    String::from_utf8_lossy(channels.get(&channel).map(Vec::as_slice).unwrap_or_default()).into_owned()
}

#[tokio::test]
async fn exec_carries_input_output_and_the_exit_code() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("exec").await?;
    let id = pod.run(&node, pod.script("main", "exec /bin/sleeper")).await?;
    let mut runtime = node.runtime().await?;
    let url = runtime.exec(exec_request(&id, "cat; echo err >&2; exit 9", false)).await?.into_inner().url;
    let mut socket = open(&url, "v5.channel.k8s.io,v4.channel.k8s.io").await?;
    let input = vec![b'x'; 1_000_000];
    for piece in input.chunks(100_000) {
        send(&mut socket, 0, piece).await?;
    }
    send(&mut socket, 255, &[0]).await?;
    let channels = receive(&mut socket).await?;
    ensure!(channels.get(&1) == Some(&input) && text(&channels, 2) == "err\n", "{}", text(&channels, 2));
    let status: serde_json::Value = serde_json::from_str(&text(&channels, 3))?;
    ensure!(
        status["reason"] == "NonZeroExitCode" && status["details"]["causes"][0]["message"] == "9",
        "{status}"
    );
    ensure!(open(&url, "v5.channel.k8s.io").await.is_err(), "an address was good twice");

    let url = runtime
        .exec(exec_request(&id, "stty size; read line; echo got $line; tty", true))
        .await?
        .into_inner()
        .url;
    let mut socket = open(&url, "v4.channel.k8s.io").await?;
    send(&mut socket, 4, br#"{"Width":132,"Height":43}"#).await?;
    send(&mut socket, 0, b"hello\n").await?;
    let channels = receive(&mut socket).await?;
    let out = text(&channels, 1);
    ensure!(out.contains("got hello\r\n") && out.contains("/dev/pts/"), "{out:?}");
    ensure!(text(&channels, 3).contains("\"Success\""));
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn attach_joins_a_container_with_input_and_terminal() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("attach").await?;
    let mut config = pod.script("main", "echo ready; read line; echo got $line; exit 6");
    (config.stdin, config.tty) = (true, true);
    let id = pod.run(&node, config).await?;
    until("it is ready", || pod.log("main").iter().any(|l| l.starts_with("stdout F ready"))).await?;
    let request =
        v1::AttachRequest { container_id: id.clone(), stdin: true, tty: true, stdout: true, stderr: false };
    let url = node.runtime().await?.attach(request).await?.into_inner().url;
    let mut socket = open(&url, "v5.channel.k8s.io").await?;
    send(&mut socket, 0, b"hello\n").await?;
    let channels = receive(&mut socket).await?;
    ensure!(text(&channels, 1).contains("got hello\r\n"), "{channels:?}");
    ensure!(ended(&node, &id).await?.exit_code == 6);
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn an_image_is_pulled_from_a_registry() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    if Command::new("docker-registry").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: docker-registry is not installed (apt-get install docker-registry skopeo)");
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    let directory = node.directory.path().join("registry");
    std::fs::create_dir(&directory)?;
    std::fs::copy(images()?.join("web-1.tar"), directory.join("web-1.tar"))?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/images/registry");
    let output = std::fs::File::create(directory.join("name"))?;
    let mut registry = Command::new(script).arg(&directory).arg(port.to_string()).stdout(output).spawn()?;
    let name = directory.join("name");
    let up = until("the registry is up", || std::fs::metadata(&name).is_ok_and(|m| m.len() > 0)).await;
    let outcome = match up {
        Ok(()) => pull(&node, std::fs::read_to_string(&name)?.trim()).await,
        Err(error) => Err(error),
    };
    // On SIGTERM the script stops the registry that it started.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(registry.id())?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    registry.wait()?;
    outcome?;
    node.finish(&[]).await
}

async fn pull(node: &TestRuntime, name: &str) -> Result<()> {
    let mut service = node.image_service().await?;
    let image = |name: &str| Some(v1::ImageSpec { image: name.into(), ..Default::default() });
    let request = |name: &str| v1::PullImageRequest { image: image(name), ..Default::default() };
    let id = service.pull_image(request(name)).await?.into_inner().image_ref;
    let status = v1::ImageStatusRequest { image: image(name), verbose: false };
    let found =
        service.image_status(status).await?.into_inner().image.context("the pulled image is not there")?;
    ensure!(found.id == id && found.repo_tags == [name] && found.repo_digests.len() == 1, "{found:?}");
    let missing = name.replace("web:1", "none:1");
    let error = service.pull_image(request(&missing)).await.expect_err("a missing image was pulled");
    ensure!(error.message().contains("failed to pull and unpack image"), "{error}");
    Ok(())
}

/// Corresponds to `head -c 24M /dev/zero | kubectl exec -i POD -- cat`: the client
/// writes faster than it reads.
#[tokio::test]
async fn an_exec_carries_more_than_all_buffers_hold_both_ways() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    const PIECE: usize = 256 << 10;
    const PIECES: usize = 96;
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("cat").await?;
    let id = pod.run(&node, pod.script("main", "exec /bin/sleeper")).await?;
    let url = node.runtime().await?.exec(exec_request(&id, "cat", false)).await?.into_inner().url;
    let (mut sink, mut stream) = open(&url, "v5.channel.k8s.io").await?.split();
    let writing = async {
        for piece in 0..PIECES {
            let mut message = vec![u8::try_from(piece)?; PIECE + 1];
            message[0] = 0;
            sink.send(Message::Binary(Bytes::from(message))).await?;
        }
        sink.send(Message::Binary(Bytes::from_static(&[255, 0]))).await?;
        Ok::<_, anyhow::Error>(())
    };
    let reading = async {
        let mut output = Vec::new();
        while let Some(message) = stream.next().await {
            match message?.into_data().split_first() {
                Some((1, bytes)) => output.extend_from_slice(bytes),
                Some((3, status)) => return Ok((output, String::from_utf8_lossy(status).into_owned())),
                _ => {}
            }
        }
        bail!("the stream ended without a status");
    };
    let both = async { tokio::try_join!(writing, reading) };
    let ((), (output, status)) = tokio::time::timeout(PATIENCE, both).await.context("it is stuck")??;
    ensure!(status.contains("Success") && output.len() == PIECE * PIECES, "{status}: {}", output.len());
    let whole = output.chunks(PIECE).enumerate().all(|(n, piece)| piece.iter().all(|b| usize::from(*b) == n));
    ensure!(whole, "what came back is not what was sent");
    node.finish(&[&pod]).await
}
