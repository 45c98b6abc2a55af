//! The CA of one run, and the certificate of all its members and clients.

use std::fs;
use std::path::Path;

use anyhow::Result;
use proto_env::{MASTERS_ORGANIZATION, TlsMaterial};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Creates a CA and one certificate for all members and clients, for
/// loopback, in `directory` (`ca.pem`, `cert.pem`, `key.pem`).
pub fn make(directory: &Path) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(vec![])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "ephor-bench-ca");
    fs::write(directory.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    leaf.distinguished_name.push(DnType::CommonName, "ephor-bench");
    leaf.distinguished_name.push(DnType::OrganizationName, MASTERS_ORGANIZATION);
    fs::write(directory.join("cert.pem"), leaf.signed_by(&key, &issuer)?.pem())?;
    fs::write(directory.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

/// Reads the files that [`make`] wrote to `directory`.
pub fn load(directory: &Path) -> Result<TlsMaterial> {
    let read = |name: &str| fs::read_to_string(directory.join(name));
    Ok(TlsMaterial { ca_pem: read("ca.pem")?, certificate_pem: read("cert.pem")?, key_pem: read("key.pem")? })
}
