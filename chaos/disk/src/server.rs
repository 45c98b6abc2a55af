//! Listens on the control socket and carries out the requests of [`crate::Control`].

use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::control::{self, Ask, Error, Told};
use crate::lock;
use crate::state::State;

/// Maximum number of connections at once; further ones are closed immediately.
const CONNECTIONS: usize = 16;

/// The control socket's listener, which runs until the process ends; dropping it removes the socket.
pub(crate) struct Server {
    path: PathBuf,
}

// === impl Server ===

impl Server {
    pub(crate) fn listen(path: &Path, state: Arc<Mutex<State>>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let open = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().name("disk-control".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (state, open) = (state.clone(), open.clone());
                if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                std::thread::spawn(move || {
                    if let Err(error) = serve(stream, &state) {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        })?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>) -> Result<(), Error> {
    let mut stream = BufReader::new(stream);
    loop {
        let told = match control::read::<Ask>(&mut stream) {
            Ok(None) => return Ok(()),
            Ok(Some(ask)) => answer(ask, state),
            Err(Error::Answer(error)) => Told::Error(format!("not understood: {error}")),
            Err(error) => return Err(error),
        };
        let mut line = serde_json::to_string(&told)?;
        line.push('\n');
        stream.get_mut().write_all(line.as_bytes())?;
    }
}

fn answer(ask: Ask, state: &Mutex<State>) -> Told {
    let mut state = lock(state);
    match ask {
        Ask::Set(fault) => state.set_fault(Some(fault)),
        Ask::Clear => state.set_fault(None),
        Ask::Counts => return Told::Counts(state.counts()),
        Ask::PowerCut(seed) => {
            return match state.power_cut(seed) {
                Ok(report) => Told::PowerCut(report),
                Err(error) => Told::Error(format!("the power cut failed half way: {error}")),
            };
        }
    }
    Told::Done
}
