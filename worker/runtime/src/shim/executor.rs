//! The last steps of a container's process before its program runs, which `libcontainer`
//! leaves to its caller: finds the program, with the same errors as runc, installs the seccomp
//! filter, and drops capabilities.
//!
//! libcontainer is not told the capabilities to drop, because the filter can only be installed while
//! CAP_SYS_ADMIN is held. Errors go to the launcher through a pipe that closes when the program starts.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, execv, pipe2};
use serde_json::Value;

use super::ShimError;
use super::plan::{LaunchPlan, SeccompProfile};
use super::seccomp::{self, Filter};

/// Replaces the container's process by its program.
#[derive(Clone)]
pub(crate) struct ProgramExecutor {
    capabilities: Arc<Capabilities>,
    filter: Option<Filter>,
    errors: Arc<OwnedFd>,
}

/// The process's capabilities in each capability set.
struct Capabilities {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

/// The launcher's end of the pipe over which the process reports why its program did not start.
pub(crate) struct ErrorPipe(OwnedFd);

impl ProgramExecutor {
    /// Makes the executor for a process of `plan`'s container, and the pipe for its errors. The capabilities
    /// are those of the plan's specification.
    pub fn new(plan: &LaunchPlan) -> Result<(Self, ErrorPipe), ShimError> {
        let names = |set: &str| -> Vec<String> {
            let list = plan.spec["process"]["capabilities"][set].as_array();
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let set = |set: &str| -> Result<CapsHashSet, ShimError> {
            let parsed = names(set).into_iter().map(|name| name.parse::<Capability>());
            parsed.collect::<Result<_, _>>().map_err(|e| ShimError::Container(e.to_string()))
        };
        let capabilities = Arc::new(Capabilities {
            bounding: set("bounding")?,
            effective: set("effective")?,
            permitted: set("permitted")?,
            inheritable: set("inheritable")?,
            ambient: set("ambient")?,
        });
        let filter = match &plan.seccomp {
            SeccompProfile::RuntimeDefault => Some(seccomp::default_filter(&names("bounding"))),
            SeccompProfile::Localhost(profile) => {
                let filter = seccomp::localhost::filter(profile);
                Some(filter.map_err(|e| ShimError::Container(e.to_string()))?)
            }
            SeccompProfile::Unconfined => None,
        };
        let (reader, writer) =
            pipe2(OFlag::O_CLOEXEC).map_err(ShimError::io("make the pipe for the process's error"))?;
        Ok((Self { capabilities, filter, errors: Arc::new(writer) }, ErrorPipe(reader)))
    }

    /// Sends an error to the launcher; does nothing if the launcher is gone.
    fn report_error(&self, message: &str) {
        let _ = nix::unistd::write(self.errors.as_fd(), message.as_bytes());
    }

    fn run(&self, spec: &Spec) -> Result<(), String> {
        let process = spec.process().as_ref().ok_or("no process to run")?;
        let arguments = process.args().clone().unwrap_or_default();
        let name = arguments.first().ok_or("no command specified")?;
        if let Some(filter) = &self.filter {
            seccomp::install(&mut filter.clone()).map_err(|e| format!("install the seccomp filter: {e}"))?;
        }
        self.capabilities.take().map_err(|e| format!("set capabilities: {e}"))?;
        let path = look_up(name, search_path(spec))?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| format!("exec {name}: invalid argument"));
        let program = text(path.as_os_str().as_encoded_bytes())?;
        let arguments = arguments.iter().map(|a| text(a.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let Err(error) = execv(&program, &arguments);
        Err(format!("exec {}: {}", path.display(), description(&error.into())))
    }
}

impl Executor for ProgramExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        self.run(spec).map_err(|message| {
            self.report_error(&message);
            ExecutorError::Other(message)
        })
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let arguments = spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
        let found = match arguments.first() {
            Some(name) => look_up(name, search_path(spec)).map(drop),
            None => Err("no command specified".into()),
        };
        found.map_err(|message| {
            self.report_error(&message);
            ExecutorValidationError::ArgValidationError(message)
        })
    }
}

impl Capabilities {
    /// Sets this process's capabilities to exactly these.
    fn take(&self) -> Result<(), caps::errors::CapsError> {
        for lost in caps::read(None, CapSet::Bounding)?.difference(&self.bounding) {
            caps::drop(None, CapSet::Bounding, *lost)?;
        }
        caps::set(None, CapSet::Effective, &self.effective)?;
        caps::set(None, CapSet::Permitted, &self.permitted)?;
        caps::set(None, CapSet::Inheritable, &self.inheritable)?;
        caps::clear(None, CapSet::Ambient)?;
        for ambient in &self.ambient {
            caps::raise(None, CapSet::Ambient, *ambient)?;
        }
        Ok(())
    }
}

impl ErrorPipe {
    /// Returns the error, or `None` once the program runs. Blocks until all writing ends of the pipe are
    /// closed.
    pub fn read(self) -> Option<String> {
        let mut text = Vec::new();
        // A read error is treated like an empty pipe.
        let _ = File::from(self.0).take(64 << 10).read_to_end(&mut text);
        (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

fn search_path(spec: &Spec) -> &str {
    let environment = spec.process().as_ref().and_then(|p| p.env().as_deref()).unwrap_or_default();
    environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default()
}

/// Finds a program as runc does (Go's `exec.LookPath`), with the same error messages.
fn look_up(name: &str, search: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return executable(&path).map(|()| path).map_err(|reason| format!("exec: \"{name}\": {reason}"));
    }
    let places = search.split(':').map(|d| Path::new(if d.is_empty() { "." } else { d }).join(name));
    places
        .into_iter()
        .find(|path| !name.is_empty() && executable(path).is_ok())
        .ok_or_else(|| format!("exec: \"{name}\": executable file not found in $PATH"))
}

/// Checks that this process may execute the file at `path`; the error says why not.
fn executable(path: &Path) -> Result<(), String> {
    let found = path.metadata().map_err(|e| format!("stat {}: {}", path.display(), description(&e)))?;
    if found.is_dir() {
        return Err("is a directory".into());
    }
    // For root the access check passes if any execute bit is set.
    let bits = found.permissions().mode() & 0o111 != 0;
    let access = nix::unistd::eaccess(path, AccessFlags::X_OK);
    if bits && access != Err(nix::Error::EACCES) { Ok(()) } else { Err("permission denied".into()) }
}

/// Returns the error's text as C libraries and Go give it, without the error number.
fn description(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_run_is_refused_in_runcs_words() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("plain");
        std::fs::write(&file, "text").expect("write");
        let (file, search) = (file.to_str().expect("text"), directory.path().to_str().expect("text"));
        let error = |name: &str| look_up(name, search).expect_err(name);
        assert_eq!(error("nothing"), r#"exec: "nothing": executable file not found in $PATH"#);
        assert_eq!(error("plain"), r#"exec: "plain": executable file not found in $PATH"#);
        assert_eq!(error(""), r#"exec: "": executable file not found in $PATH"#);
        assert_eq!(error("/no/such"), r#"exec: "/no/such": stat /no/such: no such file or directory"#);
        assert_eq!(error("/tmp"), r#"exec: "/tmp": is a directory"#);
        assert_eq!(error(file), format!(r#"exec: "{file}": permission denied"#));
    }

    #[test]
    fn a_program_is_found_by_its_path_and_by_the_search_path() {
        assert_eq!(look_up("/bin/sh", "").expect("by path"), Path::new("/bin/sh"));
        assert_eq!(look_up("sh", "/nowhere:/bin").expect("by name"), Path::new("/bin/sh"));
    }
}
