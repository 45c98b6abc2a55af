//! Pulls images from a registry (OCI distribution-spec) through `oci-client`.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use futures::{StreamExt, stream};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as RegistryReference};
use tokio::sync::mpsc;

use super::budget::Budget;
use super::content::{Blobs, digest_of};
use super::document::{Descriptor, ImageManifest, ManifestOrIndex, parse_document};
use super::hold::ContentHold;
use super::{ImageError, Reference};
use crate::config::{ImageLimits, Registries};
use crate::files::chain;

/// Maximum number of layers fetched at the same time.
const PARALLEL_LAYERS: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time that a registry may send nothing before the pull fails.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Credentials for the registry.
#[derive(Clone, Debug, Default)]
pub enum RegistryCredentials {
    /// No credentials.
    #[default]
    Anonymous,
    /// User name and password.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// A bearer token.
    Bearer(String),
}

impl RegistryCredentials {
    /// Makes credentials from the fields of CRI's `AuthConfig`; `auth` is base64 of `user:password`.
    pub fn from_parts(username: &str, password: &str, auth: &str, token: &str) -> Self {
        if !username.is_empty() {
            return Self::Basic { username: username.into(), password: password.into() };
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim_end_matches('\0')).ok();
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some((username, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
            return Self::Basic {
                username: username.into(),
                password: password.trim_end_matches('\0').into(),
            };
        }
        if !token.is_empty() {
            return Self::Bearer(token.into());
        }
        Self::Anonymous
    }

    fn into_auth(self) -> RegistryAuth {
        match self {
            Self::Anonymous => RegistryAuth::Anonymous,
            Self::Basic { username, password } => RegistryAuth::Basic(username, password),
            Self::Bearer(token) => RegistryAuth::Bearer(token),
        }
    }
}

/// Download progress of one layer.
#[derive(Clone, Debug)]
pub struct PullProgress {
    /// The layer's digest.
    pub layer: String,
    /// Bytes that are stored already.
    pub done: u64,
    /// Size of the whole layer in bytes.
    pub total: u64,
}

/// State of one pull: the registry client and the store for the content.
pub(crate) struct Puller<'a> {
    client: Client,
    source: RegistryReference,
    reference: &'a Reference,
    blobs: &'a Blobs,
    limits: &'a ImageLimits,
    hold: &'a Arc<ContentHold>,
    budget: Budget,
    progress: Option<mpsc::Sender<PullProgress>>,
}

impl<'a> Puller<'a> {
    pub async fn new(
        reference: &'a Reference,
        credentials: RegistryCredentials,
        registries: &Registries,
        (blobs, hold): (&'a Blobs, &'a Arc<ContentHold>),
        limits: &'a ImageLimits,
        progress: Option<mpsc::Sender<PullProgress>>,
    ) -> Result<Self, ImageError> {
        let domain = reference.domain();
        let registry = registries.mirrors.get(domain).map_or(domain, String::as_str).to_owned();
        let path = reference.path().to_owned();
        let source = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => RegistryReference::with_digest(registry, path, digest.to_owned()),
            (None, tag) => RegistryReference::with_tag(registry, path, tag.unwrap_or("latest").to_owned()),
        };
        let mut insecure = registries.insecure.clone();
        if is_loopback(source.resolve_registry()) {
            insecure.push(source.resolve_registry().to_owned());
        }
        let mut authorities = Vec::new();
        for path in &registries.certificate_authorities {
            authorities
                .push(Certificate { encoding: CertificateEncoding::Pem, data: tokio::fs::read(path).await? });
        }
        use_ring();
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(insecure),
            extra_root_certificates: authorities,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(STALL_TIMEOUT),
            user_agent: concat!("ephor/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        client.store_auth_if_needed(source.resolve_registry(), &credentials.into_auth()).await;
        let budget = Budget::new(blobs.ingest_directory(), limits.image_bytes, limits.image_entries)?;
        Ok(Self { client, source, reference, blobs, limits, hold, budget, progress })
    }

    fn failed(&self, what: &str, error: impl std::error::Error + 'static) -> ImageError {
        ImageError::Pull {
            reference: self.reference.to_string(),
            message: format!("{what}: {}", chain(&error)),
        }
    }

    /// Fetches manifest, configuration and layers. Returns the digest that the name refers to (of an index or
    /// a manifest) and the digest of the manifest.
    pub async fn run(&self) -> Result<(String, String), ImageError> {
        let (target, document) = self.document(&self.source).await?;
        let (manifest_digest, manifest) = match document {
            ManifestOrIndex::Manifest(manifest) => (target.clone(), manifest),
            ManifestOrIndex::Index(index) => {
                let matching =
                    index.manifests.iter().find(|m| m.platform.as_ref().is_some_and(|p| p.matches()));
                let chosen = matching.ok_or_else(|| {
                    ImageError::NotFound(format!("{}: no match for platform in manifest", self.reference))
                })?;
                let (digest, document) =
                    self.document(&self.source.clone_with_digest(chosen.digest.clone())).await?;
                match document {
                    ManifestOrIndex::Manifest(manifest) => (digest, manifest),
                    ManifestOrIndex::Index(_) => {
                        return Err(ImageError::Invalid("index within an index".into()));
                    }
                }
            }
        };
        self.blobs(&manifest).await?;
        Ok((target, manifest_digest))
    }

    async fn document(&self, source: &RegistryReference) -> Result<(String, ManifestOrIndex), ImageError> {
        let auth = RegistryAuth::Anonymous; // stored in the client already
        let fetched = self.client.pull_manifest_raw(source, &auth, ACCEPTED).await;
        let what = format!("failed to resolve reference \"{}\"", self.reference);
        let (bytes, digest) = fetched.map_err(|e| self.failed(&what, e))?;
        if bytes.len() as u64 > self.limits.document_bytes {
            return Err(ImageError::TooLarge(format!("manifest of {} is too large", self.reference)));
        }
        let actual = digest_of(&bytes);
        if let Some(expected) = source.digest().filter(|d| *d != actual) {
            return Err(ImageError::DigestMismatch { expected: expected.to_owned(), actual });
        }
        if digest != actual {
            return Err(ImageError::DigestMismatch { expected: digest, actual });
        }
        let document = parse_document(&bytes)?;
        self.blobs.put(&bytes, self.hold)?;
        Ok((actual, document))
    }

    async fn blobs(&self, manifest: &ImageManifest) -> Result<(), ImageError> {
        if manifest.layers.len() > self.limits.layers {
            return Err(ImageError::TooLarge(format!("image has more than {} layers", self.limits.layers)));
        }
        self.blob(&manifest.config, self.limits.document_bytes).await?;
        // After a failed layer no further one is begun, but those in progress are
        // finished for the next attempt.
        let failed = AtomicBool::new(false);
        let fetch = async |layer| {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let fetched = self.blob(layer, self.limits.layer_bytes).await;
            failed.fetch_or(fetched.is_err(), Ordering::Relaxed);
            fetched
        };
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            layers.push(fetch(layer));
        }
        let fetched: Vec<Result<(), ImageError>> =
            stream::iter(layers).buffer_unordered(PARALLEL_LAYERS).collect().await;
        fetched.into_iter().collect()
    }

    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<(), ImageError> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > limit {
            return Err(ImageError::TooLarge(format!("{digest} is larger than {limit} bytes")));
        }
        // Held before looking for the blob, so that it is not collected in between.
        self.hold.add(digest);
        if self.blobs.has(digest, *size)? {
            self.report(digest, *size, *size);
            return Ok(());
        }
        let what = format!("failed to fetch {digest}");
        let response = self.client.pull_blob_stream(&self.source, digest.as_str()).await;
        let mut stream = response.map_err(|e| self.failed(&what, e))?.stream;
        let mut writer = self.blobs.writer()?;
        let mut done = 0;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|e| self.failed(&what, e))?;
            done += bytes.len() as u64;
            if done > limit || (*size != 0 && done > *size) {
                return Err(ImageError::SizeMismatch {
                    digest: digest.clone(),
                    expected: *size,
                    actual: done,
                });
            }
            self.budget.take(bytes.len() as u64)?;
            writer.write_all(&bytes)?;
            self.report(digest, done, *size);
        }
        let (digest, size, hold) = (digest.clone(), *size, self.hold.clone());
        tokio::task::spawn_blocking(move || writer.commit_as(&digest, size, &hold)).await?
    }

    /// Reports progress; drops the report if the reader is too slow, as it is for display only.
    fn report(&self, layer: &str, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            let _ = progress.try_send(PullProgress { layer: layer.to_owned(), done, total });
        }
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
}

/// Installs ring as the process's TLS crypto provider if none is installed. `ephor` installs it at its start;
/// other programs (a test, the development harness) get it here.
fn use_ring() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has installed a provider first.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
