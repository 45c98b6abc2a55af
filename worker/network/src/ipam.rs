//! Assigns addresses of the node's podCIDR to the pods on this node. Each address has a file in a
//! directory, named after the address: reservations survive a crash and are shared with `ephor cni`
//! processes. Called by `pod`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::pod::PortMapping;

/// Why a reservation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory could not be read or written.
    #[error("address reservations in {dir}: {source}")]
    Io {
        /// Path of the directory.
        dir: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// Every address of the range is reserved.
    #[error("no free address in {0}")]
    Exhausted(Ipv4Net),
}

/// Content of an address's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The sandbox that has the address.
    pub sandbox: String,
    /// The sandbox's host ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

/// The address reservations in one directory.
#[derive(Clone, Debug)]
pub struct Ipam {
    dir: PathBuf,
}

impl Ipam {
    /// Opens the directory; creates it if it does not exist.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let ipam = Self { dir: dir.into() };
        fs::create_dir_all(&ipam.dir).map_err(|source| ipam.io(source))?;
        Ok(ipam)
    }

    /// Reserves an address of `range` for a sandbox, or returns the address it already has. The first two
    /// addresses (network, gateway) and the last are never assigned. Assigns addresses in rotation, so that a
    /// released one is reused as late as possible.
    pub fn reserve(&self, range: Ipv4Net, wanted: &Reservation) -> Result<Ipv4Addr, Error> {
        let _lock = self.lock()?;
        let taken = self.read()?;
        let own = taken.iter().find(|(ip, held)| held.sandbox == wanted.sandbox && range.contains(ip));
        if let Some((ip, _)) = own {
            self.write(*ip, wanted)?;
            return Ok(*ip);
        }
        let taken: BTreeSet<Ipv4Addr> = taken.into_iter().map(|(ip, _)| ip).collect();
        let (first, last) = (u32::from(range.network()) + 2, u32::from(range.broadcast()).saturating_sub(1));
        let size = (last + 1).saturating_sub(first);
        let previous = fs::read_to_string(self.dir.join("last")).ok().and_then(|text| text.parse().ok());
        let start = previous.map_or(0, |ip: Ipv4Addr| u32::from(ip).wrapping_sub(first).wrapping_add(1));
        let free = (0..size)
            .map(|step| Ipv4Addr::from(first + (start.wrapping_add(step)) % size))
            .find(|ip| !taken.contains(ip))
            .ok_or(Error::Exhausted(range))?;
        self.write(free, wanted)?;
        self.replace("last", free.to_string().as_bytes())?;
        Ok(free)
    }

    /// Removes the reservations of a sandbox and returns them.
    pub fn release(&self, sandbox: &str) -> Result<Vec<(Ipv4Addr, Reservation)>, Error> {
        self.release_where(|held| held.sandbox == sandbox)
    }

    /// Removes the reservations of all sandboxes that are not in `live` and returns them.
    pub fn retain(&self, live: &BTreeSet<String>) -> Result<Vec<(Ipv4Addr, Reservation)>, Error> {
        self.release_where(|held| !live.contains(&held.sandbox))
    }

    /// Returns all reservations, by address. An unreadable file (torn by a power cut, which no sandbox
    /// survives) counts as reserved without a sandbox, and the next `retain` removes it.
    pub fn list(&self) -> Result<Vec<(Ipv4Addr, Reservation)>, Error> {
        let _lock = self.lock()?;
        self.read()
    }

    fn release_where(
        &self,
        condition: impl Fn(&Reservation) -> bool,
    ) -> Result<Vec<(Ipv4Addr, Reservation)>, Error> {
        let _lock = self.lock()?;
        let released: Vec<_> = self.read()?.into_iter().filter(|(_, held)| condition(held)).collect();
        for (ip, _) in &released {
            fs::remove_file(self.dir.join(ip.to_string())).map_err(|source| self.io(source))?;
        }
        Ok(released)
    }

    fn read(&self) -> Result<Vec<(Ipv4Addr, Reservation)>, Error> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|source| self.io(source))? {
            let entry = entry.map_err(|source| self.io(source))?;
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let bytes = fs::read(entry.path()).map_err(|source| self.io(source))?;
            let held = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Reservation { sandbox: String::new(), ports: Vec::new() });
            found.push((ip, held));
        }
        found.sort_by_key(|(ip, _)| *ip);
        Ok(found)
    }

    fn write(&self, ip: Ipv4Addr, reservation: &Reservation) -> Result<(), Error> {
        let bytes = serde_json::to_vec(reservation).map_err(|error| self.io(error.into()))?;
        self.replace(&ip.to_string(), &bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let new = self.dir.join(format!(".{name}"));
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, self.dir.join(name)))
            .map_err(|source| self.io(source))
    }

    /// Locks out other threads and processes; the kernel releases the lock if the process dies.
    fn lock(&self) -> Result<Flock<File>, Error> {
        let file = File::create(self.dir.join(".lock")).map_err(|source| self.io(source))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| self.io(errno.into()))
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io { dir: self.dir.clone(), source }
    }

    /// Returns the directory of the reservations.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation(sandbox: &str) -> Reservation {
        Reservation { sandbox: sandbox.into(), ports: Vec::new() }
    }

    #[test]
    fn an_address_is_given_once_and_the_same_sandbox_gets_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let range = "10.42.3.0/29".parse().unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let first = ipam.reserve(range, &reservation("a")).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 42, 3, 2));
        assert_eq!(ipam.reserve(range, &reservation("a")).unwrap(), first);
        assert_eq!(ipam.reserve(range, &reservation("b")).unwrap(), Ipv4Addr::new(10, 42, 3, 3));
    }

    #[test]
    fn reservations_survive_reopening_and_a_released_address_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let range = "10.42.3.0/29".parse().unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let first = ipam.reserve(range, &reservation("a")).unwrap();
        ipam.release("a").unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let given: Vec<_> =
            (0..5).map(|n| ipam.reserve(range, &reservation(&format!("s{n}"))).unwrap()).collect();
        assert_eq!(given.last(), Some(&first), "{given:?}");
        assert!(matches!(ipam.reserve(range, &reservation("one more")), Err(Error::Exhausted(_))));
    }

    #[test]
    fn leaked_and_torn_reservations_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let range = "10.42.3.0/24".parse().unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let kept = ipam.reserve(range, &reservation("live")).unwrap();
        ipam.reserve(range, &reservation("leaked")).unwrap();
        fs::write(dir.path().join("10.42.3.9"), b"{\"sand").unwrap();
        let released = ipam.retain(&BTreeSet::from(["live".to_string()])).unwrap();
        assert_eq!(released.len(), 2);
        assert_eq!(ipam.list().unwrap(), vec![(kept, reservation("live"))]);
    }
}
