//! Bundles in S3-compatible storage, through the `object_store` crate. A bundle is
//! uploaded in parts while it is written; the object appears with the last part.
//! The reader and the writer block in their own threads; the transfer runs in the
//! async runtime.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::sync::{mpsc, oneshot};

use super::location::{BundleSink, LocationOptions};
use super::{Error, place_error};

/// Size of an upload part in bytes; S3 takes at most 10,000 parts of at least 5 MiB.
const PART_BYTES: usize = 16 * 1024 * 1024;
/// Maximum number of parts being uploaded at a time.
const PARTS_AHEAD: usize = 2;
/// Maximum number of chunks queued between the blocking side and the runtime.
const CHUNKS_AHEAD: usize = 4;
/// Size of a chunk in bytes.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Deadline of one request, which carries one part at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a failed request is no longer retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES: usize = 5;

/// An object in a bucket, or a prefix of objects.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    name: String,
    key: String,
}

impl Bucket {
    /// Parses `BUCKET/KEY`; credentials and region come from the `AWS_...` variables.
    pub(super) fn new(text: &str, options: &LocationOptions) -> Result<Self, Error> {
        let (name, key) = text.split_once('/').unwrap_or((text, ""));
        let refused = |reason: &dyn std::fmt::Display| place_error(format!("s3://{text}"), reason);
        if name.is_empty() {
            return Err(refused(&"it names no bucket: s3://BUCKET/PREFIX"));
        }
        let plain = options.endpoint.as_ref().is_some_and(|url| !url.starts_with("https://"));
        if plain && !options.allow_http {
            return Err(refused(&"the endpoint is not https://: give --allow-http to allow plain HTTP"));
        }
        let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
        let retry =
            RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env()
            .with_client_options(client)
            .with_retry(retry)
            .with_allow_http(options.allow_http)
            .with_bucket_name(name);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        for (variable, value) in &options.variables {
            let known = variable.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
            builder = builder.with_config(known.map_err(|error| refused(&error))?, value);
        }
        let store = builder.build().map_err(|error| refused(&error))?;
        Ok(Self { store: Arc::new(store), name: name.to_owned(), key: key.trim_matches('/').to_owned() })
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn join(&self, name: &str) -> Self {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}/{name}", self.key) };
        Self { key, ..self.clone() }
    }

    fn path(&self) -> Path {
        Path::from(self.key.as_str())
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        let reason = match error {
            object_store::Error::NotFound { .. } => "there is no such object or bucket".to_owned(),
            other => other.to_string(),
        };
        place_error(self, reason)
    }

    pub(super) async fn create(&self) -> Result<Box<dyn BundleSink>, Error> {
        let upload = self.store.put_multipart(&self.path()).await.map_err(|error| self.failed(&error))?;
        let upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let (chunks, taken) = mpsc::channel(CHUNKS_AHEAD);
        let (done, result) = oneshot::channel();
        tokio::spawn(async move { drop(done.send(receive(upload, taken).await)) });
        Ok(Box::new(Upload { bucket: self.clone(), chunks, buffer: BytesMut::new(), result }))
    }

    pub(super) async fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        let found = self.store.get(&self.path()).await.map_err(|error| self.failed(&error))?;
        let mut stream = found.into_stream();
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            while let Some(chunk) = stream.next().await {
                if sender.send(chunk.map_err(io::Error::other)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Box::new(Download { chunks, rest: Bytes::new() }))
    }

    pub(super) async fn list(&self) -> Result<Vec<String>, Error> {
        let prefix = (!self.key.is_empty()).then(|| self.path());
        let listed = self.store.list(prefix.as_ref());
        let names = listed.map_ok(|object| object.location.filename().map(str::to_owned));
        let names: Vec<Option<String>> = names.try_collect().await.map_err(|error| self.failed(&error))?;
        Ok(names.into_iter().flatten().collect())
    }

    pub(super) async fn remove(&self) -> Result<(), Error> {
        self.store.delete(&self.path()).await.map_err(|error| self.failed(&error))
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.name, self.key)
    }
}

/// Uploads chunks until `None` marks the end; aborts the upload when the channel closes before.
async fn receive(
    mut upload: WriteMultipart,
    mut chunks: mpsc::Receiver<Option<Bytes>>,
) -> object_store::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        match chunk {
            Some(chunk) => {
                upload.wait_for_capacity(PARTS_AHEAD).await?;
                upload.put(chunk);
            }
            None => return upload.finish().await.map(drop),
        }
    }
    upload.abort().await
}

/// The blocking side of an upload. It sends `None` when the object is complete.
struct Upload {
    bucket: Bucket,
    chunks: mpsc::Sender<Option<Bytes>>,
    buffer: BytesMut,
    result: oneshot::Receiver<object_store::Result<()>>,
}

impl Upload {
    fn send(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        if chunk.is_empty() || self.chunks.blocking_send(Some(chunk)).is_ok() {
            return Ok(());
        }
        // The runtime's side takes no more chunks, so the upload has failed.
        match self.result.try_recv() {
            Ok(Err(error)) => Err(io::Error::other(self.bucket.failed(&error).to_string())),
            _ => Err(io::Error::other(format!("{}: the upload has ended", self.bucket))),
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BundleSink for Upload {
    fn commit(mut self: Box<Self>) -> Result<(), Error> {
        let failed = |error: io::Error| place_error("writing the bundle", error);
        self.send().map_err(failed)?;
        let Self { bucket, chunks, result, .. } = *self;
        let told = chunks.blocking_send(None).is_ok();
        match result.blocking_recv() {
            Ok(Ok(())) if told => Ok(()),
            Ok(Err(error)) => Err(bucket.failed(&error)),
            _ => Err(place_error(&bucket, "the upload has ended")),
        }
    }

    fn abandon(self: Box<Self>) {
        let Self { bucket, chunks, result, .. } = *self;
        // Closing the channel before `None` aborts the upload, which removes the parts uploaded so far.
        drop(chunks);
        if let Ok(Err(error)) = result.blocking_recv() {
            tracing::warn!(%bucket, %error, "an unfinished upload may have left parts");
        }
    }
}

/// The blocking side of a download.
struct Download {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
