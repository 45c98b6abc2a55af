//! Places of bundles: a local file or directory, or an S3 bucket. A bundle appears
//! under its name only when it is complete and durable.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::s3::Bucket;
use super::{Error, place_error};

/// Suffix of the names of bundles.
pub const SUFFIX: &str = ".ephor";
/// Suffix of the names of unfinished bundles.
const PARTIAL: &str = ".partial";

/// The place of one bundle, or of many bundles.
#[derive(Debug, Clone)]
pub enum BundleLocation {
    /// A local file, or a directory of files.
    Local(PathBuf),
    /// An object in a bucket, or the prefix of many.
    S3(Bucket),
}

/// Options for reaching a bucket.
#[derive(Debug, Clone, Default)]
pub struct LocationOptions {
    /// URL of an S3-compatible store; `None` for AWS itself.
    pub endpoint: Option<String>,
    /// Whether the store may be reached without TLS.
    pub allow_http: bool,
    /// `AWS_...` variables, which override those of this process.
    pub variables: BTreeMap<String, String>,
}

/// Receives the bytes of a bundle. Dropped without a commit, it leaves nothing.
pub trait BundleSink: Write + Send {
    /// Makes what was written durable, and visible under its name.
    ///
    /// # Errors
    /// Fails if the bundle cannot be made durable; nothing of it is then left.
    fn commit(self: Box<Self>) -> Result<(), Error>;
    /// Removes what was written, as far as possible, and waits for that.
    fn abandon(self: Box<Self>) {}
}

impl BundleLocation {
    /// Parses `s3://BUCKET/PREFIX` or a path.
    ///
    /// # Errors
    /// Fails if the scheme is unknown or the bucket is not named.
    pub fn parse(text: &str, options: &LocationOptions) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return Bucket::new(rest, options).map(Self::S3);
        }
        match text.split_once("://") {
            Some((scheme, _)) => Err(Error::Refused(format!(
                "{scheme}:// is not known: give a path, or s3://BUCKET/PREFIX (with --endpoint URL for other \
                 stores that speak S3)"
            ))),
            None if text.is_empty() => Err(Error::Refused("an empty place: give a path or a URL".to_owned())),
            None => Ok(Self::Local(PathBuf::from(text))),
        }
    }

    /// Returns the place of the bundle `name` in this directory or prefix; this place itself when it
    /// already names a bundle.
    pub fn of(&self, name: &str) -> Self {
        match self {
            Self::Local(path) if path.is_dir() => Self::Local(path.join(name)),
            Self::S3(bucket) if !bucket.key().ends_with(SUFFIX) => Self::S3(bucket.join(name)),
            this => this.clone(),
        }
    }

    /// Creates the bundle at this place and returns a sink for its bytes. Must be called within a runtime.
    ///
    /// # Errors
    /// Fails if the bundle exists already or cannot be created.
    pub async fn create(&self) -> Result<Box<dyn BundleSink>, Error> {
        match self {
            Self::Local(path) => Ok(Box::new(Partial::create(path)?)),
            Self::S3(bucket) => bucket.create().await,
        }
    }

    /// Opens the bundle at this place; reading blocks, and needs a runtime on another thread.
    ///
    /// # Errors
    /// Fails if there is no bundle.
    pub async fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        match self {
            Self::Local(path) => {
                Ok(Box::new(File::open(path).map_err(|error| place_error(path.display(), error))?))
            }
            Self::S3(bucket) => bucket.open().await,
        }
    }

    /// Lists the names of the bundles at this place that begin with `prefix`, in no order.
    ///
    /// # Errors
    /// Fails if the directory or bucket cannot be listed.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut names = match self {
            Self::Local(path) => list(path).map_err(|error| place_error(path.display(), error))?,
            Self::S3(bucket) => bucket.list().await?,
        };
        names.retain(|name| name.starts_with(prefix) && name.ends_with(SUFFIX));
        Ok(names)
    }

    /// Removes the bundle at this place.
    ///
    /// # Errors
    /// Fails if the bundle cannot be removed.
    pub async fn remove(&self) -> Result<(), Error> {
        match self {
            Self::Local(path) => fs::remove_file(path).map_err(|error| place_error(path.display(), error)),
            Self::S3(bucket) => bucket.remove().await,
        }
    }

    /// Removes files that an interrupted backup left in a directory; in a bucket the bucket's
    /// own rules for unfinished uploads do that.
    pub fn tidy(&self, prefix: &str) {
        let Self::Local(path) = self else { return };
        let ours = |name: &String| name.starts_with(prefix) && name.ends_with(PARTIAL);
        for name in list(path).unwrap_or_default().into_iter().filter(ours) {
            if let Err(error) = fs::remove_file(path.join(&name)) {
                tracing::warn!(name, %error, "an unfinished backup could not be removed");
            }
        }
    }
}

impl std::fmt::Display for BundleLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::S3(bucket) => write!(f, "{bucket}"),
        }
    }
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// A file that gets its final name when it is complete.
struct Partial {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<io::BufWriter<File>>,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, Error> {
        let failed = |error| place_error(path.display(), error);
        if path.symlink_metadata().is_ok() {
            let reason = "it exists, and a backup does not replace anything";
            return Err(place_error(path.display(), reason));
        }
        let name = path.file_name().ok_or_else(|| place_error(path.display(), "it is no name of a file"))?;
        if !name.to_string_lossy().ends_with(SUFFIX) {
            let reason = format!("it is no directory, and no name of a bundle, which ends with {SUFFIX}");
            return Err(place_error(path.display(), reason));
        }
        let mut name = name.to_os_string();
        name.push(PARTIAL);
        let temporary = path.with_file_name(name);
        // The bundle holds keys, so only its owner may read it, although it is encrypted.
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        let file = Some(io::BufWriter::with_capacity(256 * 1024, file));
        Ok(Self { path: path.to_owned(), temporary, file })
    }

    fn rename(&mut self) -> io::Result<()> {
        let file = self.file.take().ok_or_else(|| io::Error::other("it is closed"))?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        let renamed =
            file.and_then(|file| file.sync_all()).and_then(|()| fs::rename(&self.temporary, &self.path));
        if renamed.is_err() {
            self.discard();
        }
        renamed?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn discard(&self) {
        if let Err(error) = fs::remove_file(&self.temporary) {
            tracing::warn!(path = %self.temporary.display(), %error, "an unfinished backup could not be removed");
        }
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or_else(|| Err(io::Error::other("it is closed")), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

impl BundleSink for Partial {
    fn commit(mut self: Box<Self>) -> Result<(), Error> {
        self.rename().map_err(|error| place_error(self.path.display(), error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let place =
            BundleLocation::parse(directory.path().to_str().unwrap(), &LocationOptions::default()).unwrap();
        let bundle = place.of("a-1.ephor");
        let mut sink = bundle.create().await.unwrap();
        sink.write_all(b"half").unwrap();
        assert!(place.list("a-").await.unwrap().is_empty());
        drop(sink);
        assert_eq!(list(directory.path()).unwrap(), Vec::<String>::new());
        let mut sink = bundle.create().await.unwrap();
        sink.write_all(b"whole").unwrap();
        sink.commit().unwrap();
        assert_eq!(place.list("a-").await.unwrap(), ["a-1.ephor"]);
        assert!(place.list("b-").await.unwrap().is_empty());
        let again = bundle.create().await.err().unwrap().to_string();
        assert!(again.contains("it exists"), "{again}");
        let elsewhere = directory.path().join("missing").to_str().unwrap().to_owned();
        let elsewhere =
            BundleLocation::parse(&elsewhere, &LocationOptions::default()).unwrap().of("a-1.ephor");
        assert!(elsewhere.create().await.err().unwrap().to_string().contains("no directory"));
        let mut text = String::new();
        bundle.open().await.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        bundle.remove().await.unwrap();
        assert!(bundle.open().await.is_err());
    }

    #[test]
    fn what_is_no_place_is_refused_with_a_hint() {
        for (text, hint) in [("ftp://x/y", "ftp:// is not known"), ("", "empty"), ("s3:///a", "bucket")] {
            let error = BundleLocation::parse(text, &LocationOptions::default()).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        let endpoint = Some("http://127.0.0.1:9".to_owned());
        let options = LocationOptions { endpoint, ..LocationOptions::default() };
        let error = BundleLocation::parse("s3://b/p", &options).unwrap_err().to_string();
        assert!(error.contains("--allow-http"), "{error}");
    }
}
