//! The runtime as a program of its own, with a loopback-only network: for trying it out and for this crate's
//! tests. A worker runs the same code as part of `ephor worker`.
//!
//! `ephor-runtime serve DIRECTORY CGROUP` serves CRI on `DIRECTORY/cri.sock` until a stop
//! signal; `ephor-runtime load DIRECTORY ARCHIVE` loads the images of an archive into a running
//! runtime; `ephor-runtime cleanup DIRECTORY CGROUP` removes everything; `ephor-runtime shim ...`
//! is started by the runtime.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use proto_wire::image::LoadRequest;
use proto_wire::image::images_client::ImagesClient;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};
use worker_runtime::{HostLoopback, RuntimeConfig, remove_everything, serve, shim_main};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    if verb == "shim" {
        return shim_main(arguments);
    }
    let outcome = match (arguments.next(), arguments.next()) {
        (Some(directory), Some(cgroup)) => {
            run(verb.to_str().unwrap_or_default(), directory.into(), cgroup.into())
        }
        _ => Err(anyhow::anyhow!(
            "usage: ephor-runtime serve|cleanup DIRECTORY CGROUP, or load DIRECTORY ARCHIVE"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ephor-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(verb: &str, directory: PathBuf, cgroup: PathBuf) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let exe = std::env::current_exe()?;
    let join = |name: &str| directory.join(name);
    let config = RuntimeConfig::new(join("root"), join("state"), join("cri.sock"), cgroup, exe);
    match verb {
        "cleanup" => {
            let report = remove_everything(&config).await?;
            println!(
                "killed {} shims and {} processes, took down {} mounts",
                report.shims, report.processes, report.mounts
            );
            Ok(())
        }
        "serve" => {
            let shutdown = CancellationToken::new();
            let stop = shutdown.clone();
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::spawn(async move {
                tokio::select! { biased; _ = terminate.recv() => {} _ = interrupt.recv() => {} }
                stop.cancel();
            });
            Ok(serve(config, Arc::new(HostLoopback), shutdown).await?)
        }
        "load" => {
            for name in load(directory.join("cri.sock"), config.cgroup_root).await? {
                println!("{name}");
            }
            Ok(())
        }
        _ => anyhow::bail!("unknown verb {verb}"),
    }
}

async fn load(socket: PathBuf, archive: PathBuf) -> anyhow::Result<Vec<String>> {
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let channel = Endpoint::from_static("http://runtime").connect_with_connector(connect).await?;
    let file = ReaderStream::with_capacity(tokio::fs::File::open(archive).await?, 1 << 20);
    // On a read error the upload ends early, and the runtime rejects the truncated archive.
    let chunks = file.map_while(|chunk| chunk.ok().map(|data| LoadRequest { data: data.to_vec() }));
    Ok(ImagesClient::new(channel).load(chunks).await?.into_inner().references)
}
