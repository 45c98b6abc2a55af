//! Client of a disk's control socket: requests and answers are one line of JSON each. The injector of live
//! experiments and the power-cut harness use it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cut::PowerCut;
use crate::fault::{Counts, DiskFault};

/// Maximum length of a line, in bytes.
pub(crate) const LINE_BYTES: u64 = 4096;
/// Maximum time to wait for an answer; after that the disk counts as dead.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Request to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Ask {
    Set(DiskFault),
    Clear,
    PowerCut(u64),
    Counts,
}

/// Answer of a disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Told {
    Done,
    PowerCut(PowerCut),
    Counts(Counts),
    Error(String),
}

/// Reason why a disk did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No disk listens on the socket, or the connection broke.
    #[error("the disk's control socket: {0}")]
    Socket(#[from] io::Error),
    /// The disk refused the request or failed to carry it out.
    #[error("the disk: {0}")]
    Refused(String),
    /// The answer does not parse.
    #[error("the disk's answer: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A connection to a mounted disk. Calls block, each for at most half a minute.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

// === impl Control ===

impl Control {
    /// Connects to the socket of a mounted disk.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sets a fault, which replaces the present one.
    pub fn set(&mut self, fault: DiskFault) -> Result<(), Error> {
        self.ask(Ask::Set(fault)).map(drop)
    }

    /// Ends the present fault; does nothing if there is none.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.ask(Ask::Clear).map(drop)
    }

    /// Cuts the power. On return the disk is back with what survived, which depends on what was not synced
    /// and on `seed`; file handles opened before fail with EIO.
    pub fn power_cut(&mut self, seed: u64) -> Result<PowerCut, Error> {
        match self.ask(Ask::PowerCut(seed))? {
            Told::PowerCut(report) => Ok(report),
            other => Err(Error::Refused(format!("{other:?} is no answer to a power cut"))),
        }
    }

    /// Returns how often each kind of event happened so far.
    pub fn counts(&mut self) -> Result<Counts, Error> {
        match self.ask(Ask::Counts)? {
            Told::Counts(counts) => Ok(counts),
            other => Err(Error::Refused(format!("{other:?} are no counts"))),
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<Told, Error> {
        let mut line = serde_json::to_string(&ask)?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        match read(&mut self.stream)? {
            Some(Told::Error(reason)) => Err(Error::Refused(reason)),
            Some(told) => Ok(told),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// Reads one line; `None` at the end of the stream.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(
    stream: &mut BufReader<UnixStream>,
) -> Result<Option<T>, Error> {
    let mut line = String::new();
    stream.by_ref().take(LINE_BYTES).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}
