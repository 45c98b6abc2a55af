//! Reads a container's termination message: from its file, or from the end of its log.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::ContainerStatus;

use crate::cri::labels;
use crate::logs::read::tail_text;

const MAX_MESSAGE_BYTES: u64 = 4096;
const MAX_LOG_MESSAGE_BYTES: usize = 2048;
const MAX_LOG_MESSAGE_LINES: usize = 80;

/// Deadline of reading one message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the termination message of a container that has ended, at most a few KiB; empty if there is none or
/// reading takes too long (the file may be in a volume that hangs, and stopping a pod must not wait for
/// that).
pub async fn read(status: &ContainerStatus) -> String {
    let status = status.clone();
    let reading = tokio::task::spawn_blocking(move || read_blocking(&status));
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(message)) => message,
        _ => String::new(),
    }
}

fn read_blocking(status: &ContainerStatus) -> String {
    let path = status.annotations.get(labels::MESSAGE_PATH);
    let mount = path.and_then(|path| status.mounts.iter().find(|m| m.container_path == *path));
    let written = mount.and_then(|mount| read_file(Path::new(&mount.host_path))).unwrap_or_default();
    let from_logs =
        status.annotations.get(labels::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    if written.is_empty() && from_logs && status.exit_code != 0 {
        let tail = tail_text(Path::new(&status.log_path), MAX_LOG_MESSAGE_LINES, MAX_LOG_MESSAGE_BYTES);
        return tail.unwrap_or_default();
    }
    written
}

fn read_file(path: &Path) -> Option<String> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_MESSAGE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
