//! `ephor image`: manages images of the embedded runtime, through its socket on this
//! machine or through the image port of all nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{Purpose, TlsNetwork};
use proto_wire::image::images_client::ImagesClient;
use proto_wire::image::{ListRequest, LoadRequest, PullRequest};
use tokio::io::AsyncReadExt;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

/// Size in bytes of the chunks in which archives are sent.
const CHUNK_BYTES: usize = 1 << 20;
/// Port of a node's image service.
const IMAGE_PORT: u16 = 10260;

/// Load, list and pull container images
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Socket of the embedded runtime
    #[arg(long, global = true, default_value = "/run/ephor/cri.sock", value_name = "PATH")]
    socket: PathBuf,
    /// Path of the kubeconfig of the cluster, for --all-nodes [default: $KUBECONFIG, or the one of this machine]
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Load images from an archive (OCI layout or docker save)
    Load {
        /// Path of the archive
        file: PathBuf,
        /// Load the archive on every node of the cluster instead of this node alone
        #[arg(long)]
        all_nodes: bool,
    },
    /// List the images of this node
    Ls,
    /// Pull an image from its registry
    Pull {
        /// Name of the image: NAME[:TAG|@DIGEST]
        reference: String,
    },
}

/// Runs `ephor image`.
pub async fn run(arguments: ImageArgs) -> Result<()> {
    match arguments.command {
        ImageCommand::Load { file, all_nodes: false } => {
            for reference in load_into(&arguments.socket, &file).await? {
                println!("{reference}");
            }
            Ok(())
        }
        ImageCommand::Load { file, all_nodes: true } => {
            let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
            load_everywhere(&kubeconfig, &file).await
        }
        ImageCommand::Ls => list(&arguments.socket).await,
        ImageCommand::Pull { reference } => pull(&arguments.socket, reference).await,
    }
}

/// Connects to the image service at a unix socket.
async fn local(socket: &Path) -> Result<ImagesClient<Channel>> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel =
        Endpoint::from_static("http://runtime").connect_with_connector(connector).await.with_context(
            || format!("no runtime at {} (is the worker running? see --socket)", socket.display()),
        )?;
    Ok(ImagesClient::new(channel))
}

/// Loads an archive through a runtime's socket; returns the names of its images.
pub async fn load_into(socket: &Path, file: &Path) -> Result<Vec<String>> {
    load(local(socket).await?, file).await
}

async fn load(mut images: ImagesClient<Channel>, file: &Path) -> Result<Vec<String>> {
    let mut archive =
        tokio::fs::File::open(file).await.with_context(|| format!("opening {}", file.display()))?;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let feed = tokio::spawn(async move {
        loop {
            let mut data = vec![0; CHUNK_BYTES];
            let length = archive.read(&mut data).await?;
            data.truncate(length);
            if length == 0 || sender.send(LoadRequest { data }).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    let answer = images.load(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    feed.await?.with_context(|| format!("reading {}", file.display()))?;
    let answer = answer.map_err(|status| anyhow::anyhow!("{}: {}", file.display(), status.message()))?;
    Ok(answer.into_inner().references)
}

async fn load_everywhere(kubeconfig: &Path, file: &Path) -> Result<()> {
    let client = crate::kubeconfig::client(kubeconfig, None).await?;
    let nodes = Api::<Node>::all(client).list(&kube::api::ListParams::default()).await?;
    let network = Arc::new(TlsNetwork::new(&crate::kubeconfig::material(kubeconfig)?)?);
    let mut failed = Vec::new();
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        match load_on(&node, network.clone(), file).await {
            Ok(references) => println!("{name}: {}", references.join(", ")),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

async fn load_on(node: &Node, network: Arc<TlsNetwork>, file: &Path) -> Result<Vec<String>> {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref()).context("no address")?;
    let address = addresses.iter().find(|a| a.type_ == "InternalIP").context("no InternalIP")?;
    let options = ChannelOptions {
        purpose: Purpose::Peer,
        organization: Some("system:nodes"),
        connect_timeout: Duration::from_secs(5),
    };
    let channel = channel(network, &format!("{}:{IMAGE_PORT}", address.address), options)?;
    load(ImagesClient::new(channel), file).await
}

async fn list(socket: &Path) -> Result<()> {
    let images = local(socket).await?.list(ListRequest {}).await?.into_inner().images;
    println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
        let names = if image.references.is_empty() { &image.digests } else { &image.references };
        for name in names {
            println!("{name:<60} {id:<14} {size:>10}");
        }
    }
    Ok(())
}

async fn pull(socket: &Path, reference: String) -> Result<()> {
    let request = PullRequest { reference: reference.clone() };
    let answer = local(socket).await?.pull(request).await;
    let mut progress = answer.map_err(|s| anyhow::anyhow!("{reference}: {}", s.message()))?.into_inner();
    let bar = indicatif::ProgressBar::new(0);
    while let Some(step) = progress.next().await {
        let step = step.map_err(|s| anyhow::anyhow!("{reference}: {}", s.message()))?;
        bar.set_length(step.total_bytes);
        bar.set_position(step.done_bytes);
        if !step.id.is_empty() {
            bar.finish_and_clear();
            println!("{}", step.id);
        }
    }
    Ok(())
}
