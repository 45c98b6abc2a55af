//! `DATA/pki`: the files that hold the cluster's keys on a master's disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use master_apiserver::ServiceAccountKeys;
use proto_env::{CertificateInfo, Disk, TlsError};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::authority::CA_BACKDATE;
use super::{Authority, Error, Issued};

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const SERVICE_ACCOUNT_KEY: &str = "sa.key";
const DATA_KEY: &str = "data.key";
/// File with the checksums of the other files, in the format of sha256sum(1).
const SUMS: &str = "SHA256SUMS";

/// The keys that all masters of a cluster share, and nobody else has.
pub struct ClusterKeys {
    /// The cluster CA.
    pub authority: Authority,
    /// The first key that signs ServiceAccount tokens, ECDSA P-256, PKCS#8 PEM; later ones are derived from the CA's
    /// key and the replicated record of keys.
    pub service_account_key_pem: String,
    /// Encrypts the files on the masters' disks.
    pub data_key: Zeroizing<[u8; 32]>,
}

impl ClusterKeys {
    /// Returns what the API server needs for the keys of ServiceAccount tokens, each of which lives for `lifetime`.
    ///
    /// # Errors
    /// Where the CA certificate cannot be read.
    pub fn service_account_keys(&self, lifetime: Duration) -> Result<ServiceAccountKeys, TlsError> {
        let ca = CertificateInfo::from_pem(self.authority.certificate_pem())?;
        Ok(ServiceAccountKeys {
            first_key_pem: self.service_account_key_pem.clone(),
            // The first key was made together with the CA.
            first_key_since: ca.not_before + CA_BACKDATE,
            // Before there was a record, nobody noted the lifetimes of tokens.
            first_key_tokens_until: ca.not_after,
            secret: self.authority.service_account_secret(),
            lifetime,
        })
    }

    /// Creates the keys of a new cluster. `random` fills the data key.
    pub fn create(
        cluster_id: &str,
        now: OffsetDateTime,
        random: impl FnOnce(&mut [u8]),
    ) -> Result<Self, Error> {
        let mut data_key = Zeroizing::new([0; 32]);
        random(&mut data_key[..]);
        Ok(Self {
            authority: Authority::create(cluster_id, now)?,
            service_account_key_pem: KeyPair::generate()?.serialize_pem(),
            data_key,
        })
    }
}

/// The directory that holds the key files.
pub struct KeyFiles {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
}

impl KeyFiles {
    /// The key files of the data directory `data_dir`, in `DATA/pki`.
    pub fn new(data_dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { directory: data_dir.join("pki"), disk }
    }

    /// Reads the keys; `None` when this master has none yet.
    pub fn load(&self) -> Result<Option<ClusterKeys>, Error> {
        let certificate = match self.disk.read(&self.path(CA_CERTIFICATE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => self.read(CA_CERTIFICATE)?,
        };
        self.check()?;
        let authority = Authority::load(certificate, self.read(CA_KEY)?)?;
        let path = self.path(DATA_KEY);
        let bytes = Zeroizing::new(self.disk.read(&path).map_err(|source| Error::File { path, source })?);
        let data_key = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| Error::Pem("data.key"))?;
        Ok(Some(ClusterKeys {
            authority,
            service_account_key_pem: self.read(SERVICE_ACCOUNT_KEY)?,
            data_key: Zeroizing::new(data_key),
        }))
    }

    /// Checks the files against their checksums: keys that were corrupted on disk may still parse.
    fn check(&self) -> Result<(), Error> {
        let file = |name: &str| {
            let path = self.path(name);
            self.disk.read(&path).map_err(|source| Error::File { path, source })
        };
        let sums = match self.disk.read(&self.path(SUMS)) {
            // Directories of earlier versions have no checksums.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            _ => file(SUMS)?,
        };
        let mut found = String::new();
        for name in [CA_CERTIFICATE, CA_KEY, SERVICE_ACCOUNT_KEY, DATA_KEY] {
            found.push_str(&sum_line(name, &Zeroizing::new(file(name)?)));
        }
        if found.as_bytes() == sums { Ok(()) } else { Err(Error::Damaged(self.directory.clone())) }
    }

    /// Writes the keys, the CA certificate last, since [`Self::load`] takes it to mean that all files exist.
    pub fn store(&self, keys: &ClusterKeys) -> Result<(), Error> {
        self.write(CA_KEY, keys.authority.key_pem().as_bytes())?;
        self.write(SERVICE_ACCOUNT_KEY, keys.service_account_key_pem.as_bytes())?;
        self.write(DATA_KEY, &keys.data_key[..])?;
        let certificate = keys.authority.certificate_pem().as_bytes();
        let contents: [(&str, &[u8]); 4] = [
            (CA_CERTIFICATE, certificate),
            (CA_KEY, keys.authority.key_pem().as_bytes()),
            (SERVICE_ACCOUNT_KEY, keys.service_account_key_pem.as_bytes()),
            (DATA_KEY, &keys.data_key[..]),
        ];
        let sums: String = contents.iter().map(|(name, bytes)| sum_line(name, bytes)).collect();
        self.write(SUMS, sums.as_bytes())?;
        self.write(CA_CERTIFICATE, keys.authority.certificate_pem().as_bytes())
    }

    /// Returns names and contents of the files that [`Self::store`] writes, for a backup.
    pub fn contents(keys: &ClusterKeys) -> [(&'static str, Vec<u8>); 4] {
        [
            (CA_CERTIFICATE, keys.authority.certificate_pem().as_bytes().to_vec()),
            (CA_KEY, keys.authority.key_pem().as_bytes().to_vec()),
            (SERVICE_ACCOUNT_KEY, keys.service_account_key_pem.as_bytes().to_vec()),
            (DATA_KEY, keys.data_key.to_vec()),
        ]
    }

    /// Decodes the keys from the files that [`Self::contents`] returned.
    pub fn from_contents(files: Vec<(String, Vec<u8>)>) -> Result<ClusterKeys, Error> {
        let mut files: BTreeMap<String, Vec<u8>> = files.into_iter().collect();
        let mut take = |name: &'static str| files.remove(name).ok_or(Error::Pem(name));
        let text = |name: &'static str, bytes| String::from_utf8(bytes).map_err(|_| Error::Pem(name));
        let certificate = text(CA_CERTIFICATE, take(CA_CERTIFICATE)?)?;
        let data_key = Zeroizing::new(take(DATA_KEY)?);
        Ok(ClusterKeys {
            authority: Authority::load(certificate, text(CA_KEY, take(CA_KEY)?)?)?,
            service_account_key_pem: text(SERVICE_ACCOUNT_KEY, take(SERVICE_ACCOUNT_KEY)?)?,
            data_key: Zeroizing::new(data_key[..].try_into().map_err(|_| Error::Pem(DATA_KEY))?),
        })
    }

    /// Writes a certificate with its key as `NAME.crt` and `NAME.key`, for operators and tools.
    pub fn store_issued(&self, name: &str, issued: &Issued) -> Result<(), Error> {
        self.write(&format!("{name}.key"), issued.key_pem.as_bytes())?;
        self.write(&format!("{name}.crt"), issued.chain_pem.as_bytes())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.path(name);
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        self.disk.read(&path).and_then(text).map_err(|source| Error::File { path, source })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(name);
        write_private(self.disk.as_ref(), &path, bytes).map_err(|source| Error::File { path, source })
    }
}

fn sum_line(name: &str, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digest}  {name}\n")
}

/// Writes a file that only its owner can read, durably and atomically; creates its directory when it is
/// missing.
pub fn write_private(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The parent of a bare file name is the empty path.
    if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        disk.create_dir_all(directory)?;
    }
    disk.replace(path, bytes)
}

/// Parses a PEM certificate chain for rustls.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::Pem("certificate chain"))
}

/// Parses a PEM private key for rustls.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem("private key"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proto_env::SystemDisk;

    use super::*;

    #[test]
    fn keys_read_back_as_written_and_only_for_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let files = KeyFiles::new(directory.path(), Arc::new(SystemDisk));
        assert!(files.load().unwrap().is_none());
        let keys = ClusterKeys::create("c", OffsetDateTime::now_utc(), |b| b.fill(7)).unwrap();
        files.store(&keys).unwrap();
        let read = files.load().unwrap().unwrap();
        assert_eq!(*read.data_key, [7; 32]);
        assert_eq!(read.authority.certificate_pem(), keys.authority.certificate_pem());
        let mode = fs::metadata(directory.path().join("pki/ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_first_service_account_key_is_as_old_as_the_ca_and_the_secret_of_the_others_comes_with_it() {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let keys = ClusterKeys::create("c", now, |bytes| bytes.fill(7)).unwrap();
        let year = Duration::from_secs(365 * 86_400);
        let found = keys.service_account_keys(year).unwrap();
        assert_eq!(OffsetDateTime::from(found.first_key_since), now);
        assert_eq!(OffsetDateTime::from(found.first_key_tokens_until), now + time::Duration::days(3650));
        // A master that joins gets the CA's key and the first key, and so has all of them.
        let (certificate, key) = (keys.authority.certificate_pem(), keys.authority.key_pem());
        let joined = Authority::load(certificate.into(), key.into()).unwrap();
        assert_eq!(joined.service_account_secret(), found.secret);
        let other = ClusterKeys::create("c", now, |bytes| bytes.fill(7)).unwrap();
        assert_ne!(other.authority.service_account_secret(), found.secret);
    }

    #[test]
    fn a_flipped_byte_in_any_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let files = KeyFiles::new(directory.path(), Arc::new(SystemDisk));
        files.store(&ClusterKeys::create("c", OffsetDateTime::now_utc(), |b| b.fill(7)).unwrap()).unwrap();
        for name in [CA_CERTIFICATE, CA_KEY, SERVICE_ACCOUNT_KEY, DATA_KEY, SUMS] {
            let path = directory.path().join("pki").join(name);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(&path, &bytes).unwrap();
                let error = files.load().err().map(|error| error.to_string()).unwrap_or_default();
                assert!(!error.is_empty() && !error.contains('\n'), "{name}, byte {at}: {error:?}");
            }
            fs::write(&path, &whole).unwrap();
        }
        assert!(files.load().unwrap().is_some());
    }
}
