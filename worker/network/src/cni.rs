//! The CNI plugin (specification 1.0.0) for containerd and CRI-O: runs as `ephor cni`, or through the wrapper
//! that [`install`] writes into the plugin directory. Attaches pods as the embedded runtime does, with the
//! same address reservations.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::pod::{self, PodNetwork, PortMapping};

/// Newest supported version of the specification; versions since 0.3.0 get the same form of result.
const VERSION: &str = "1.0.0";
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Maximum size in bytes of the configuration on standard input.
const INPUT_LIMIT: u64 = 1 << 20;

/// Why the plugin failed; printed in the specification's error format.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable is missing or wrong.
    #[error("environment variable {0} is missing")]
    Environment(&'static str),
    /// The command is not defined by the specification.
    #[error("unknown command {0}")]
    Command(String),
    /// The configuration cannot be read.
    #[error("configuration: {0}")]
    Configuration(String),
    /// The configuration asks for a version that this plugin does not support.
    #[error("CNI version {0} is not supported")]
    Version(String),
    /// The interface differs from what ADD created.
    #[error("the sandbox has no address here")]
    NotAttached,
    /// Attaching failed.
    #[error(transparent)]
    Pod(#[from] pod::Error),
    /// The async runtime could not be started, or files could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// Returns the specification's error code; 100 and above are the plugin's own.
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) | Self::Command(_) => 4,
            Self::Configuration(_) => 6,
            Self::Io(_) => 5,
            Self::Pod(pod::Error::NotReady) => 11,
            Self::Pod(_) => 100,
            Self::NotAttached => 101,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: Option<String>,
    #[serde(default)]
    state_dir: PathBuf,
    #[serde(default)]
    runtime_config: RuntimeConfiguration,
    /// Attachments that still exist, for the command GC.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfiguration {
    #[serde(default)]
    port_mappings: Vec<PortMapping>,
}

/// Runs the plugin with the process's environment and standard input, prints the result and returns the exit
/// code. Entry point of `ephor cni`.
pub fn cni_main() -> i32 {
    let environment: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| name.starts_with("CNI_")).collect();
    let mut input = String::new();
    let read = io::stdin().lock().take(INPUT_LIMIT).read_to_string(&mut input);
    let outcome = read.map_err(Error::from).and_then(|_| run(&environment, &input));
    let (text, code) = match &outcome {
        Ok(text) => (text.clone(), 0),
        Err(error) => {
            let version = version_of(&input).unwrap_or_else(|| VERSION.into());
            let body = json!({ "cniVersion": version, "code": error.code(), "msg": error.to_string() });
            (body.to_string(), 1)
        }
    };
    println!("{text}");
    code
}

fn version_of(input: &str) -> Option<String> {
    serde_json::from_str::<Configuration>(input).ok()?.cni_version
}

/// Runs the plugin with the given environment (`CNI_*`) and configuration; returns the text to print.
pub fn run(environment: &BTreeMap<String, String>, input: &str) -> Result<String, Error> {
    let variable = |name: &'static str| environment.get(name).ok_or(Error::Environment(name));
    let command = variable("CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(json!({ "cniVersion": VERSION, "supportedVersions": VERSIONS }).to_string());
    }
    let configuration: Configuration =
        serde_json::from_str(input).map_err(|error| Error::Configuration(error.to_string()))?;
    let version = configuration.cni_version.clone().unwrap_or_else(|| VERSION.into());
    if !VERSIONS.contains(&version.as_str()) {
        return Err(Error::Version(version));
    }
    // STATUS and GC do not concern a single sandbox.
    let of_sandbox = |name| match command.as_str() {
        "STATUS" | "GC" => Ok(String::new()),
        _ => variable(name).cloned(),
    };
    let (sandbox, interface) = (&of_sandbox("CNI_CONTAINERID")?, &of_sandbox("CNI_IFNAME")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let network = PodNetwork::open(&configuration.state_dir)?;
        match command.as_str() {
            "ADD" => {
                let netns = variable("CNI_NETNS")?;
                let ports = &configuration.runtime_config.port_mappings;
                let address = network.attach_as(sandbox, Path::new(netns), interface, ports).await?;
                Ok(result(&version, interface, netns, address))
            }
            "DEL" => network.detach(sandbox).await.map(|()| String::new()).map_err(Error::from),
            "CHECK" => network.address_of(sandbox)?.map(|_| String::new()).ok_or(Error::NotAttached),
            "GC" => {
                let attached = configuration.valid_attachments.unwrap_or_default();
                let live = attached.into_iter().map(|a| a.container_id).collect();
                Ok(network.collect_garbage(&live).await.map(|_| String::new())?)
            }
            "STATUS" => {
                let ready = network.ready().borrow().is_some();
                if ready { Ok(String::new()) } else { Err(pod::Error::NotReady.into()) }
            }
            other => Err(Error::Command(other.into())),
        }
    })
}

fn result(version: &str, interface: &str, netns: &str, address: Ipv4Addr) -> String {
    let mut ip = json!({ "address": format!("{address}/32"), "gateway": "169.254.1.1", "interface": 0 });
    // Before version 1.0.0 each address names its IP family.
    if version.starts_with("0.") {
        ip["version"] = json!("4");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{ "name": interface, "sandbox": netns }],
        "ips": [ip],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
        "dns": {},
    })
    .to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conflist<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: [serde_json::Value; 1],
}

/// Configures an external container runtime to use the plugin: writes the wrapper `ephor-cni` into `bin_dir`,
/// which runs `executable cni`, and `10-ephor.conflist`, which names it, into `conf_dir`. `state_dir` is the
/// directory of the same name in the node's network configuration.
pub fn install(bin_dir: &Path, conf_dir: &Path, executable: &Path, state_dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(bin_dir)?;
    fs::create_dir_all(conf_dir)?;
    let quoted = executable.display().to_string().replace('\'', r"'\''");
    let wrapper = bin_dir.join("ephor-cni");
    replace(&wrapper, format!("#!/bin/sh\nexec '{quoted}' cni\n").as_bytes(), 0o755)?;
    let plugin = json!({
        "type": "ephor-cni",
        "stateDir": state_dir,
        "capabilities": { "portMappings": true },
    });
    let conflist = Conflist { cni_version: VERSION, name: "ephor", plugins: [plugin] };
    let text =
        serde_json::to_vec_pretty(&conflist).map_err(|error| Error::Configuration(error.to_string()))?;
    replace(&conf_dir.join("10-ephor.conflist"), &text, 0o644)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &str) -> BTreeMap<String, String> {
        [("CNI_COMMAND", command), ("CNI_CONTAINERID", "box"), ("CNI_IFNAME", "eth0")]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into()
    }

    #[test]
    fn versions_are_told_without_configuration() {
        assert!(run(&environment("VERSION"), "").unwrap().contains("1.0.0"));
    }

    #[test]
    fn bad_input_gets_the_codes_of_the_specification() {
        let code = |command: &str, input: &str| run(&environment(command), input).unwrap_err().code();
        assert_eq!(code("ADD", "{"), 6);
        assert_eq!(code("ADD", r#"{"cniVersion":"9.0.0"}"#), 1);
        let dir = tempfile::tempdir().unwrap();
        let input = json!({ "cniVersion": "1.0.0", "stateDir": dir.path() }).to_string();
        assert_eq!(code("ADD", &input), 4, "no CNI_NETNS");
        assert_eq!(code("FLY", &input), 4);
        assert_eq!(code("CHECK", &input), 101);
    }

    #[test]
    fn deleting_what_never_was_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let input = json!({ "cniVersion": "1.0.0", "stateDir": dir.path() }).to_string();
        assert_eq!(run(&environment("DEL"), &input).unwrap(), "");
    }

    #[test]
    fn a_collection_frees_what_is_attached_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = crate::ipam::Ipam::open(dir.path().join("addresses")).unwrap();
        let range = "10.42.3.0/24".parse().unwrap();
        for sandbox in ["live", "leaked"] {
            let reservation = crate::ipam::Reservation { sandbox: sandbox.into(), ports: Vec::new() };
            ipam.reserve(range, &reservation).unwrap();
        }
        let valid = json!([{ "containerID": "live", "ifname": "eth0" }]);
        let input =
            json!({ "cniVersion": "1.1.0", "stateDir": dir.path(), "cni.dev/valid-attachments": valid });
        let command = [("CNI_COMMAND".to_string(), "GC".to_string())].into();
        assert_eq!(run(&command, &input.to_string()).unwrap(), "");
        let left: Vec<String> = ipam.list().unwrap().into_iter().map(|(_, held)| held.sandbox).collect();
        assert_eq!(left, ["live"]);
    }

    #[test]
    fn the_conflist_names_the_wrapper() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("net.d"));
        install(&bin, &conf, Path::new("/usr/bin/ephor"), Path::new("/var/lib/ephor/network")).unwrap();
        let text = fs::read_to_string(conf.join("10-ephor.conflist")).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["plugins"][0]["type"], "ephor-cni");
        assert!(fs::metadata(bin.join("ephor-cni")).unwrap().permissions().mode() & 0o111 != 0);
    }
}
