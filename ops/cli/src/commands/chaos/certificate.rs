//! `ephor chaos certificate`: issues an agent's certificate from the keys of a master,
//! for nodes that have no keys of their own. `ephor dev` uses it too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use chaos_live::access::AGENTS_ORGANIZATION;
use clap::Args;
use master_node::pki::files::write_private;
use master_node::pki::{DEFAULT_LIFETIME, KeyFiles, Subject, Usage, Validity};
use proto_env::{SystemDisk, TlsMaterial};

/// Issue the certificate of an agent, on a master
#[derive(Debug, Args)]
pub struct CertificateArgs {
    /// Name of the node that the agent runs on
    #[arg(long)]
    name: String,
    /// Directory to which ca.crt, agent.crt and agent.key are written
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Data directory of this master
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ephor/master")]
    data_dir: PathBuf,
}

/// Runs `ephor chaos certificate`.
pub fn run(arguments: &CertificateArgs) -> Result<()> {
    write(&arguments.data_dir, &arguments.name, &arguments.output)
}

/// Issues CA certificate, certificate and key for the agent of node `name`, PEM.
pub fn issue(data_dir: &Path, name: &str) -> Result<(String, String, String)> {
    let files = KeyFiles::new(data_dir, Arc::new(SystemDisk));
    let keys = files.load()?.with_context(|| {
        format!(
            "{} holds no keys of a cluster; hint: give --pki, the directory that `ephor chaos certificate` wrote",
            data_dir.display()
        )
    })?;
    let subject = Subject::new(format!("system:ephor:chaos:{name}"), AGENTS_ORGANIZATION);
    let validity = Validity::new(std::time::SystemTime::now(), DEFAULT_LIFETIME);
    let issued = keys.authority.issue(&subject, &[], Usage::Peer, validity)?;
    Ok((keys.authority.certificate_pem().to_owned(), issued.chain_pem, issued.key_pem))
}

/// Writes the agent's CA certificate, certificate and key to `directory`, readable for its owner alone.
pub fn write(data_dir: &Path, name: &str, directory: &Path) -> Result<()> {
    let (ca, certificate, key) = issue(data_dir, name)?;
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (file, text) in [("ca.crt", ca), ("agent.crt", certificate), ("agent.key", key)] {
        let path = directory.join(file);
        write_private(&SystemDisk, &path, text.as_bytes()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Reads the files that [`write`] wrote.
pub fn read(directory: &Path) -> Result<TlsMaterial> {
    let text = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    Ok(TlsMaterial {
        ca_pem: text("ca.crt")?,
        certificate_pem: text("agent.crt")?,
        key_pem: text("agent.key")?,
    })
}
