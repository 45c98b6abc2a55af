//! Hosts for masters that are started by hand: a network and a mount namespace
//! each, on one bridge, which the test itself reaches too. Everything goes when
//! the values are dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a command and gives its standard output; an error carries all it said.
pub fn run(command: &mut Command) -> Result<String> {
    outputs(command).map(|(out, _)| out)
}

/// Runs a command and gives what it said, on both outputs.
pub fn said(command: &mut Command) -> Result<String> {
    outputs(command).map(|(out, err)| out + &err)
}

fn outputs(command: &mut Command) -> Result<(String, String)> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed: {err}{out}");
    Ok((out, err))
}

fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))
}

/// The binary under test.
pub fn binary() -> Result<PathBuf> {
    Ok(PathBuf::from(std::env::var_os("EPHOR_BIN").context("EPHOR_BIN is not set: run ops/test")?))
}

/// A bridge; the test has its address `.254`.
pub struct Bridge {
    prefix: String,
    network: String,
}

/// A host on a bridge.
pub struct Host {
    namespace: String,
    holder: Child,
    /// Its address.
    pub address: String,
}

/// A process that is killed with SIGKILL, at the latest when this is dropped.
pub struct Running(Child);

impl Bridge {
    /// A bridge for the /24 network that `network` begins (`10.99.8`). Devices
    /// and namespaces are named after `prefix`, of at most eight letters.
    pub fn new(prefix: &str, network: &str) -> Result<Self> {
        // What a run that was killed has left.
        for line in ip("netns list")?.lines() {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name.starts_with(&format!("{prefix}-")) {
                ip(&format!("netns del {name}"))?;
            }
        }
        let _ = ip(&format!("link del {prefix}"));
        ip(&format!("link add {prefix} type bridge"))?;
        let this = Self { prefix: prefix.to_owned(), network: network.to_owned() };
        ip(&format!("addr add {}/24 dev {prefix}", this.address()))?;
        ip(&format!("link set {prefix} up"))?;
        Ok(this)
    }

    /// The address of the test.
    pub fn address(&self) -> String {
        format!("{}.254", self.network)
    }

    /// A host with a short name and the last number of its address.
    pub fn host(&self, name: &str, number: u8) -> Result<Host> {
        let Self { prefix, network } = self;
        let namespace = format!("{prefix}-{name}");
        let address = format!("{network}.{number}");
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {prefix}{name} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("link set {prefix}{name} master {prefix} up"))?;
        for line in [
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
        ] {
            ip(&format!("-n {namespace} {line}"))?;
        }
        // `ip netns exec` would hide the cgroups.
        let net = format!("--net=/run/netns/{namespace}");
        let holder =
            Command::new("nsenter").args([&net, "unshare", "--mount", "sleep", "infinity"]).spawn()?;
        Ok(Host { namespace, holder, address })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("link del {}", self.prefix)) {
            eprintln!("removing the bridge: {error:#}");
        }
    }
}

impl Host {
    /// A command inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", "--"]).arg(program.as_ref());
        command
    }

    /// `ephor` inside, not started yet.
    pub fn ephor_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(binary()?);
        command.args(arguments);
        Ok(command)
    }

    /// Runs `ephor` inside.
    pub fn ephor(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.ephor_command(arguments)?)
    }

    /// Runs `ephor` inside, which must fail; gives what it said.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        match self.ephor(arguments) {
            Ok(output) => anyhow::bail!("{arguments:?} succeeded: {output}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Starts `ephor` in the background with its log in a file.
    pub fn start(&self, log: &Path, arguments: &[&str]) -> Result<Running> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.ephor_command(arguments)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Running(command.spawn()?))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let ended = self.holder.kill().and_then(|()| self.holder.wait());
        if let Err(error) =
            ended.map_err(anyhow::Error::from).and(ip(&format!("netns del {}", self.namespace)))
        {
            eprintln!("removing {}: {error:#}", self.namespace);
        }
    }
}

impl Running {
    /// Ends it with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("a process could not be ended");
        }
    }
}
