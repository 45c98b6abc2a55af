//! Starts the runtime: restores state, opens the sockets, registers the services.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use nix::mount::{MsFlags, mount};
use proto_wire::image::images_server::ImagesServer;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::cgroup::Hierarchies;
use crate::config::RuntimeConfig;
use crate::cri::Service;
use crate::files;
use crate::image::ImageStore;
use crate::network::SandboxNetwork;
use crate::paths::Paths;
use crate::streaming;

/// Maximum size of a CRI message in bytes: ExecSync returns up to 16 MiB of each stream.
const MESSAGE_LIMIT: usize = 40 << 20;
/// Maximum time for requests to end after the shutdown signal.
const DRAIN: Duration = Duration::from_secs(3);

/// Why the runtime could not start, or why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A directory, mount or socket could not be created.
    #[error("runtime: {what}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The underlying error.
        source: io::Error,
    },
    /// The CRI socket already has a server.
    #[error("another runtime serves {0}")]
    InUse(std::path::PathBuf),
    /// The gRPC server failed.
    #[error("runtime: serve CRI")]
    Transport(#[from] tonic::transport::Error),
}

fn io_error<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source: source.into() }
}

/// Serves CRI and `ephor.image.v1.Images` on the configured socket until `shutdown` is cancelled.
///
/// Restores every pod of an earlier run, whose containers have kept running as the same processes. Ending the
/// runtime ends no container. Creates missing directories.
pub async fn serve(
    config: RuntimeConfig,
    network: Arc<dyn SandboxNetwork>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let paths = Paths { root: absolute(&config.root)?, state: absolute(&config.state)? };
    prepare(&paths, &config.socket)?;
    let images = ImageStore::open(&paths.images(), config.limits.clone(), config.registries.clone())
        .map_err(io_error("open the image store"))?;
    let hierarchies = Hierarchies::detect().map_err(io_error("find the cgroup hierarchies"))?;
    hierarchies.cgroup(&config.cgroup_root).create().map_err(io_error("make the cgroup root"))?;
    let streams =
        streaming::start(config.streaming, shutdown.clone()).await.map_err(io_error("listen for streams"))?;
    let socket = config.socket.clone();
    let service = Service::new(config, paths, images, network, hierarchies, streams);
    service.restore().await.map_err(io_error("restore state"))?;
    let (tidier, until) = (service.clone(), shutdown.clone());
    let tidying = tokio::spawn(proto_env::supervise::supervise("runtime-networks", move || {
        tidier.clone().tidy_networks(until.clone())
    }));

    let listener = listen(&socket).await?;
    tracing::info!(socket = %socket.display(), "runtime serves CRI");
    let server = Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(ImageServiceServer::new(service.clone()).max_encoding_message_size(MESSAGE_LIMIT))
        .add_service(ImagesServer::new(service).max_decoding_message_size(MESSAGE_LIMIT))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        biased;
        ended = &mut server => ended?,
        () = shutdown.cancelled() => {
            // Event streams never end by themselves, so that the wait is bounded.
            if let Ok(ended) = tokio::time::timeout(DRAIN, server).await {
                ended?;
            }
        }
    }
    tidying.abort();
    files::remove_file(&socket).map_err(io_error("remove the socket"))
}

fn absolute(path: &Path) -> Result<std::path::PathBuf, ServeError> {
    fs::create_dir_all(path).map_err(io_error(format!("make {}", path.display())))?;
    path.canonicalize().map_err(io_error(format!("find {}", path.display())))
}

/// Creates the directories, and makes the volatile one a private mount of its own.
fn prepare(paths: &Paths, socket: &Path) -> Result<(), ServeError> {
    let directories = [
        paths.sandboxes_root(),
        paths.containers_root(),
        paths.sandboxes_state(),
        paths.state.join("containers"),
        paths.libcontainer(),
    ];
    for directory in [&paths.root, &paths.state].into_iter().chain(&directories) {
        files::make_private_directory(directory)
            .map_err(io_error(format!("make {}", directory.display())))?;
    }
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(io_error(format!("make {}", parent.display())))?;
    }
    if !is_mount_point(&paths.state).map_err(io_error("read mounts"))? {
        let none = None::<&str>;
        mount(Some(&paths.state), &paths.state, none, MsFlags::MS_BIND, none)
            .map_err(io_error("bind the state directory"))?;
        // Private, so that the mounts below do not propagate to containers and other namespaces.
        mount(none, &paths.state, none, MsFlags::MS_PRIVATE, none)
            .map_err(io_error("make the state directory private"))?;
    }
    Ok(())
}

/// Returns whether something is mounted exactly at `path`, which must be canonical.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(&unescape(point)) == path)))
}

/// Decodes a path of `/proc/self/mountinfo`, where blanks and backslashes are octal escapes.
pub(crate) fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

async fn listen(socket: &Path) -> Result<UnixListener, ServeError> {
    match UnixStream::connect(socket).await {
        Ok(_) => return Err(ServeError::InUse(socket.to_owned())),
        Err(_) => files::remove_file(socket).map_err(io_error("remove an old socket"))?,
    }
    // Made under a temporary name, so that no client can connect before the permissions are set.
    let hidden = socket.with_extension("new");
    files::remove_file(&hidden).map_err(io_error("remove an old socket"))?;
    let listener =
        UnixListener::bind(&hidden).map_err(io_error(format!("listen on {}", socket.display())))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))
        .map_err(io_error("protect the socket"))?;
    fs::rename(&hidden, socket).map_err(io_error("publish the socket"))?;
    Ok(listener)
}
