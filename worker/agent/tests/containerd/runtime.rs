//! A containerd for one test: its own root, state and socket, and one image made of Debian's static busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

pub const IMAGE: &str = "localhost/agent-test:1";
const BUSYBOX: &str = "/bin/busybox";

pub struct Containerd {
    process: Child,
    socket: PathBuf,
}

impl Containerd {
    /// Starts containerd; the error says what is missing.
    pub fn start(dir: &Path) -> Result<Self, String> {
        for program in ["/usr/bin/containerd", "/usr/bin/ctr", "/usr/sbin/runc", BUSYBOX] {
            if !Path::new(program).exists() {
                return Err(format!("{program} is missing"));
            }
        }
        if !nix::unistd::geteuid().is_root() {
            return Err("not root".to_owned());
        }
        let socket = dir.join("containerd.sock");
        let restrict = fs::write("/proc/self/oom_score_adj", "-1").is_err();
        let config = format!(
            "version = 2\nroot = '{root}'\nstate = '{state}'\n[grpc]\naddress = '{socket}'\n\
             [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = '{IMAGE}'\nrestrict_oom_score_adj = {restrict}\n\
             stream_server_address = '127.0.0.1'\nstream_server_port = '0'\n\
             [plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/usr/lib/cni'\nconf_dir = '{cni}'\n",
            root = dir.join("root").display(),
            state = dir.join("state").display(),
            socket = socket.display(),
            cni = dir.join("cni").display(),
        );
        let file = dir.join("containerd.toml");
        fs::write(&file, config).map_err(|e| e.to_string())?;
        let log = fs::File::create(dir.join("containerd.log")).map_err(|e| e.to_string())?;
        let process = Command::new("/usr/bin/containerd")
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| e.to_string())?;
        let containerd = Self { process, socket };
        containerd.import(dir)?;
        Ok(containerd)
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("/usr/bin/ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["-n", "k8s.io"])
            .args(arguments)
            .output()
            .map_err(|e| e.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn import(&self, dir: &Path) -> Result<(), String> {
        let archive = archive(&dir.join("image")).map_err(|e| e.to_string())?;
        let archive = archive.to_string_lossy().into_owned();
        let mut last = String::new();
        // containerd needs some moments after its start before it answers.
        for _ in 0..200 {
            match self.ctr(&["images", "import", &archive]) {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(last)
    }

    /// Waits until no container is left.
    pub async fn wait_until_empty(&self, limit: Duration) {
        let wait = async {
            while !self.ctr(&["containers", "list", "-q"]).is_ok_and(|list| list.trim().is_empty()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(limit, wait).await.expect("containers are left");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Best effort: a failed test must not leave processes behind.
        for id in self.ctr(&["tasks", "list", "-q"]).unwrap_or_default().split_whitespace() {
            let _ = self.ctr(&["tasks", "delete", "--force", id]);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An OCI image archive with busybox and `pause` as its command.
fn archive(dir: &Path) -> std::io::Result<PathBuf> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy(BUSYBOX, rootfs.join("bin/busybox"))?;
    let layer = dir.join("layer.tar");
    tar(&["-C", &rootfs.to_string_lossy(), "-cf", &layer.to_string_lossy(), "bin"])?;
    let layer_bytes = fs::read(&layer)?;
    let store = |bytes: &[u8], media_type: &str| -> std::io::Result<serde_json::Value> {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let layer = store(&layer_bytes, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = store(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer]});
    let mut manifest = store(manifest.to_string().as_bytes(), manifest_type)?;
    manifest["annotations"] =
        json!({"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let archive = dir.join("image.tar");
    let archive_name = archive.to_string_lossy().into_owned();
    tar(&["-C", &dir.to_string_lossy(), "-cf", &archive_name, "blobs", "index.json", "oci-layout"])?;
    Ok(archive)
}

fn tar(arguments: &[&str]) -> std::io::Result<()> {
    let status = Command::new("tar").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("tar failed")) }
}
