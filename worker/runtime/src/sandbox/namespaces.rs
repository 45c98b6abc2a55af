//! Network, IPC and UTS namespaces that exist without a process: a bind mount of the namespace's file in
//! `/proc` keeps each alive.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use k8s_cri::v1::NamespaceMode;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::SandboxRecord;

/// Sysctls that containerd 2 sets for every pod: low ports and ping without privileges.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Creates the namespaces that the pod does not share with the host, sets host name and sysctls in them, and
/// mounts them on `directory/net`, `ipc` and `uts`. Blocks.
pub(super) fn make(record: &SandboxRecord, directory: &Path) -> io::Result<()> {
    let options = record.namespaces();
    let mut names = Vec::new();
    let mut flags = CloneFlags::empty();
    if options.network() != NamespaceMode::Node {
        names.extend(["net", "uts"]);
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if options.ipc() != NamespaceMode::Node {
        names.push("ipc");
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    crate::files::make_private_directory(directory)?;
    let (directory, record) = (directory.to_owned(), record.clone());
    // The namespaces are those of a separate thread; the bind mounts keep them after it ends.
    let thread = std::thread::Builder::new().name("namespaces".into()).spawn(move || {
        unshare(flags)?;
        if flags.contains(CloneFlags::CLONE_NEWUTS) {
            sethostname(record.hostname())?;
        }
        if flags.contains(CloneFlags::CLONE_NEWNET) {
            for (name, value) in DEFAULT_SYSCTLS {
                // A kernel without this sysctl has no such restriction.
                let _ = set_sysctl(name, value);
            }
        }
        for (name, value) in record.config.linux.iter().flat_map(|l| &l.sysctls) {
            set_sysctl(name, value)?;
        }
        for name in names {
            let target = directory.join(name);
            File::create(&target)?;
            let source = format!("/proc/thread-self/ns/{name}");
            mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    })?;
    thread.join().map_err(|_| io::Error::other("making namespaces failed"))?
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    if name.split(['.', '/']).any(|part| part.is_empty() || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid sysctl \"{name}\"")));
    }
    // If a name contains slashes, dots belong to its components, as in sysctl(8).
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    fs::write(Path::new("/proc/sys").join(path), value)
        .map_err(|e| io::Error::new(e.kind(), format!("set sysctl {name}: {e}")))
}
