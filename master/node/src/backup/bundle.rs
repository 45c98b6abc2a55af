//! Bundles: writes entries into a bundle, and reads and checks a bundle entry by
//! entry. All functions block, and hold one entry and a few buffers in memory at
//! a time.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use proto_wire::settings::ClusterSettings;
use storage::FrameReader;
use tokio::sync::mpsc;

use super::location::BundleSink;
use super::manifest::{BundleManifest, HEAD, Head, MANIFEST, SETTINGS, SNAPSHOT, Sum};
use super::{BundleEntry, Error, Passphrase, place_error};
use crate::pki::{ClusterKeys, KeyFiles};

/// Base-2 logarithm of scrypt's N for new bundles: 128 MiB and under half a second for each guess of
/// the passphrase.
const WORK_FACTOR: u8 = 17;
/// Largest work factor that a bundle to be opened may ask for: 1 GiB of memory.
const WORK_FACTOR_MAX: u8 = 20;
/// zstd level; the default is 3, this one is as fast as a disk.
const COMPRESSION: i32 = 1;
/// Maximum size of an entry in bytes.
const ENTRY_MAX: u64 = storage::codec::LIMIT_BYTES as u64;
/// Maximum number of zero bytes at the end of an archive.
const ARCHIVE_END_MAX: u64 = 1024;

type Plain<R> = zstd::Decoder<'static, io::BufReader<age::stream::StreamReader<io::BufReader<Tracked<R>>>>>;

/// Writes the entries of a bundle as an encrypted archive.
pub(super) struct BundleWriter<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, age::stream::StreamWriter<W>>>,
    sum: Sum,
    manifest: Option<BundleManifest>,
}

/// The contents of a bundle besides objects.
pub(super) struct Contents {
    pub(super) head: Head,
    pub(super) settings: ClusterSettings,
    pub(super) keys: ClusterKeys,
}

/// Receives the contents of a bundle while it is read. The contents are verified only
/// once the whole bundle was read.
pub(super) trait BundleVisitor {
    /// Receives the contents besides objects; called first.
    fn contents(&mut self, contents: Contents) -> Result<(), Error>;
    /// Receives one frame of the snapshot; called for every frame, in order.
    fn frame(&mut self, frame: &[u8]) -> Result<(), Error>;
}

// === impl BundleWriter ===

impl<W: Write> BundleWriter<W> {
    pub(super) fn new(out: W, passphrase: &Passphrase) -> io::Result<Self> {
        Self::with_work_factor(out, passphrase, WORK_FACTOR)
    }

    pub(super) fn with_work_factor(out: W, passphrase: &Passphrase, work_factor: u8) -> io::Result<Self> {
        let mut recipient = age::scrypt::Recipient::new(passphrase.secret());
        recipient.set_work_factor(work_factor);
        let recipients: [&dyn age::Recipient; 1] = [&recipient];
        let encryptor = age::Encryptor::with_recipients(recipients.into_iter()).map_err(io::Error::other)?;
        let compressed = zstd::Encoder::new(encryptor.wrap_output(out)?, COMPRESSION)?;
        Ok(Self { tar: tar::Builder::new(compressed), sum: Sum::default(), manifest: None })
    }

    /// Adds an entry; the manifest comes last, and must match the sum of the others.
    pub(super) fn push(&mut self, entry: &BundleEntry) -> Result<(), Error> {
        if entry.name == MANIFEST {
            self.manifest = Some(check_sum(&self.sum, &entry.data)?);
        } else {
            self.sum.add(&entry.name, &entry.data);
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.data.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        let written = self.tar.append_data(&mut header, &entry.name, &entry.data[..]);
        written.map_err(|error| place_error("writing the bundle", error))
    }

    /// Completes the archive and returns its output, which is not synced yet.
    pub(super) fn finish(self) -> Result<(W, BundleManifest), Error> {
        let cut_off = || Error::Source("the master stopped before the backup was complete".to_owned());
        let manifest = self.manifest.ok_or_else(cut_off)?;
        let ended = self.tar.into_inner().and_then(zstd::Encoder::finish).and_then(|out| out.finish());
        Ok((ended.map_err(|error| place_error("writing the bundle", error))?, manifest))
    }
}

/// Writes a stream of entries into a sink, and commits the sink once the bundle is
/// complete and durable. Blocks.
///
/// # Errors
/// Fails if the stream or the sink fails; the sink then leaves nothing.
pub fn write(
    entries: mpsc::Receiver<Result<BundleEntry, Error>>,
    mut sink: Box<dyn BundleSink>,
    passphrase: &Passphrase,
) -> Result<BundleManifest, Error> {
    match write_all(entries, &mut sink, passphrase) {
        Ok(manifest) => sink.commit().map(|()| manifest),
        Err(error) => {
            sink.abandon();
            Err(error)
        }
    }
}

fn write_all(
    mut entries: mpsc::Receiver<Result<BundleEntry, Error>>,
    sink: &mut Box<dyn BundleSink>,
    passphrase: &Passphrase,
) -> Result<BundleManifest, Error> {
    let failed = |error| place_error("writing the bundle", error);
    let mut writer = BundleWriter::new(sink, passphrase).map_err(failed)?;
    while let Some(entry) = entries.blocking_recv() {
        writer.push(&entry?)?;
    }
    Ok(writer.finish()?.1)
}

fn check_sum(sum: &Sum, manifest: &[u8]) -> Result<BundleManifest, Error> {
    let said: BundleManifest =
        serde_json::from_slice(manifest).map_err(|error| Error::Damaged(format!("{MANIFEST}: {error}")))?;
    if sum.manifest(said.head.clone()) != said {
        return Err(Error::Damaged(format!("its entries are not those that {MANIFEST} sums up")));
    }
    Ok(said)
}

/// Reads and checks a whole bundle, and passes its contents to `visitor`. Blocks.
pub(super) fn read(
    source: impl Read,
    passphrase: &Passphrase,
    visitor: &mut dyn BundleVisitor,
) -> Result<BundleManifest, Error> {
    let failure = Arc::new(OnceLock::new());
    let tracked = Tracked { inner: source, failure: failure.clone() };
    let read = open(tracked, passphrase).and_then(|plain| read_entries(plain, visitor));
    // An error of the disk or the network is the cause of any other error, so it is the one to report.
    match (failure.get(), read) {
        (Some(reason), Err(_)) => Err(place_error("reading the bundle", reason)),
        (_, read) => read,
    }
}

fn open<R: Read>(source: Tracked<R>, passphrase: &Passphrase) -> Result<Plain<R>, Error> {
    use age::DecryptError;
    let decryptor = age::Decryptor::new_buffered(io::BufReader::with_capacity(128 * 1024, source));
    let decryptor = decryptor.map_err(|error| match error {
        DecryptError::InvalidHeader => Error::NotABundle("it does not begin as an age file does".to_owned()),
        other => Error::NotABundle(other.to_string()),
    })?;
    if !decryptor.is_scrypt() {
        return Err(Error::NotABundle("it is not encrypted with a passphrase".to_owned()));
    }
    let mut identity = age::scrypt::Identity::new(passphrase.secret());
    identity.set_max_work_factor(WORK_FACTOR_MAX);
    let identities: [&dyn age::Identity; 1] = [&identity];
    let plain = decryptor.decrypt(identities.into_iter()).map_err(|error| match error {
        DecryptError::ExcessiveWork { required, .. } => {
            Error::NotABundle(format!("opening it would take 2^{required} steps of scrypt"))
        }
        DecryptError::Io(error) => damaged("its header", &error),
        _ => Error::Passphrase,
    })?;
    zstd::Decoder::new(plain).map_err(|error| damaged("its compression", &error))
}

fn damaged(what: &str, error: &io::Error) -> Error {
    Error::Damaged(format!("{what}: {error}"))
}

fn read_entries<R: Read>(plain: Plain<R>, visitor: &mut dyn BundleVisitor) -> Result<BundleManifest, Error> {
    let mut archive = tar::Archive::new(plain);
    let mut before = Preamble::default();
    let mut sum = Sum::default();
    let mut frames = 0_u64;
    let mut manifest = None;
    let failed = |error: io::Error| damaged("its content", &error);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if manifest.is_some() {
            return Err(Error::Damaged(format!("{name} follows {MANIFEST}")));
        }
        let mut data = Vec::new();
        if entry.size() > ENTRY_MAX {
            return Err(Error::Damaged(format!("{name} has {} bytes", entry.size())));
        }
        entry.read_to_end(&mut data).map_err(failed)?;
        if name == MANIFEST {
            manifest = Some(check_sum(&sum, &data)?);
            continue;
        }
        sum.add(&name, &data);
        if name == format!("{SNAPSHOT}{frames:08}") {
            if let Some(contents) = before.complete()? {
                visitor.contents(contents)?;
            }
            visitor.frame(&data)?;
            frames += 1;
        } else {
            before.take(&name, data)?;
        }
    }
    // Reads to the end of the encrypted stream: only that proves that nothing was cut off. An
    // archive ends with zeros.
    let mut rest = Vec::new();
    archive.into_inner().take(ARCHIVE_END_MAX + 1).read_to_end(&mut rest).map_err(failed)?;
    if rest.len() as u64 > ARCHIVE_END_MAX || rest.iter().any(|byte| *byte != 0) {
        return Err(Error::Damaged("bytes follow its end".to_owned()));
    }
    let manifest = manifest.ok_or_else(|| Error::Damaged(format!("it ends before {MANIFEST}")))?;
    if before.head.as_ref() != Some(&manifest.head) {
        return Err(Error::Damaged(format!("{MANIFEST} and {HEAD} contradict each other")));
    }
    Ok(manifest)
}

/// The entries that come before the snapshot.
#[derive(Default)]
struct Preamble {
    head: Option<Head>,
    settings: Option<ClusterSettings>,
    keys: Vec<(String, Vec<u8>)>,
    given: bool,
}

impl Preamble {
    fn take(&mut self, name: &str, data: Vec<u8>) -> Result<(), Error> {
        match (name, name.strip_prefix("pki/")) {
            (HEAD, _) if self.head.is_none() => self.head = Some(Head::from_json(&data)?),
            _ if self.head.is_none() || self.given => {
                return Err(Error::Damaged(format!("{name} is not where it belongs")));
            }
            (SETTINGS, _) if self.settings.is_none() => {
                let settings = ClusterSettings::from_json(&String::from_utf8_lossy(&data));
                let wrong = |error| Error::Damaged(format!("{SETTINGS}: {error}"));
                self.settings = Some(settings.map_err(wrong)?);
            }
            (_, Some(key)) => self.keys.push((key.to_owned(), data)),
            _ => return Err(Error::Damaged(format!("{name} does not belong into it"))),
        }
        Ok(())
    }

    /// Returns the contents on the first call, `None` on later ones.
    fn complete(&mut self) -> Result<Option<Contents>, Error> {
        if std::mem::replace(&mut self.given, true) {
            return Ok(None);
        }
        let missing = |what: &str| Error::Damaged(format!("it holds no {what}"));
        let head = self.head.clone().ok_or_else(|| missing(HEAD))?;
        let settings = self.settings.take().ok_or_else(|| missing(SETTINGS))?;
        let keys = KeyFiles::from_contents(std::mem::take(&mut self.keys))
            .map_err(|error| Error::Damaged(format!("its keys: {error}")))?;
        Ok(Some(Contents { head, settings, keys }))
    }
}

/// Reads a bundle through and checks everything it holds. Blocks.
///
/// # Errors
/// Fails if any bit differs from what was written, or the passphrase is wrong.
pub fn verify(source: impl Read, passphrase: &Passphrase) -> Result<BundleManifest, Error> {
    #[derive(Default)]
    struct Check(FrameReader);
    impl BundleVisitor for Check {
        fn contents(&mut self, _: Contents) -> Result<(), Error> {
            Ok(())
        }
        fn frame(&mut self, frame: &[u8]) -> Result<(), Error> {
            self.0.push(frame).map(drop).map_err(|error| Error::Damaged(error.to_string()))
        }
    }
    let mut check = Check::default();
    let manifest = read(source, passphrase, &mut check)?;
    let state = check.0.finish().map_err(|error| Error::Damaged(error.to_string()))?;
    matches(&manifest, state.revision, state.objects)?;
    Ok(manifest)
}

/// Checks that the snapshot has the revision and number of objects that the manifest states.
pub(super) fn matches(manifest: &BundleManifest, revision: u64, objects: u64) -> Result<(), Error> {
    if (manifest.head.revision, manifest.head.objects) == (revision, objects) {
        return Ok(());
    }
    Err(Error::Damaged(format!(
        "its snapshot holds {objects} objects at revision {revision}, not what it says"
    )))
}

/// A reader that records why its source failed: the decoders above it report only
/// that reading failed.
struct Tracked<R> {
    inner: R,
    failure: Arc<OnceLock<String>>,
}

impl<R: Read> Read for Tracked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure.get_or_init(|| error.to_string());
            }
        })
    }
}
