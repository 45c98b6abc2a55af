//! An S3 server for one test: the `s3s-fs` crate, which stores objects as files and checks signatures.

use std::path::Path;

use anyhow::{Result, anyhow};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The only access key the server accepts.
pub const ACCESS_KEY: &str = "TESTACCESSKEY";
/// Secret of that key.
pub const SECRET_KEY: &str = "testsecretkey";

/// A running server; it stops when this value is dropped.
pub struct Server {
    task: JoinHandle<()>,
    /// URL of the server.
    pub endpoint: String,
}

impl Server {
    /// Starts a server for the buckets that are directories in `root`.
    pub async fn start(root: &Path, address: &str) -> Result<Self> {
        let files = s3s_fs::FileSystem::new(root).map_err(|error| anyhow!("{error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind((address, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let connection = Builder::new(TokioExecutor::new());
                    if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                        eprintln!("a connection to the S3 server: {error}");
                    }
                });
            }
        });
        Ok(Self { task, endpoint })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
