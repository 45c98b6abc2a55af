//! Rotates the logs of running containers: renames a log that is too large, makes the runtime open a new
//! file, and removes the oldest files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_cri::v1::ContainerState;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::read::files;
use crate::Error;
use crate::context::Context;

const PERIOD: Duration = Duration::from_secs(10);
/// Deadline of one container's rotation.
const PATIENCE: Duration = Duration::from_secs(10);
const CONCURRENT: usize = 16;

/// Checks every running container's log each ten seconds until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(error) = rotate_all(&context).await {
            warn!(%error, "cannot rotate container logs");
        }
    }
}

async fn rotate_all(context: &Context) -> Result<(), Error> {
    let containers = context.cri.list_containers(None).await?;
    let running = containers.into_iter().filter(|c| c.state == ContainerState::ContainerRunning as i32);
    futures::stream::iter(running)
        .for_each_concurrent(CONCURRENT, |container| async move {
            // Containers are handled independently: one that does not answer must not keep the others' logs
            // from being rotated.
            match tokio::time::timeout(PATIENCE, rotate_one(context, &container.id)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, container = container.id, "cannot rotate a container's log"),
                Err(_) => warn!(container = container.id, "cannot rotate a container's log: no answer"),
            }
        })
        .await;
    Ok(())
}

async fn rotate_one(context: &Context, id: &str) -> Result<(), Error> {
    let status = match context.cri.container_status(id).await {
        Ok(Some(status)) => status,
        Ok(None) => return Ok(()),
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let log = Path::new(&status.log_path);
    let size = std::fs::metadata(log).map_or(0, |meta| meta.len());
    if size > context.config.log_max_bytes { rotate(context, id, log).await } else { Ok(()) }
}

async fn rotate(context: &Context, id: &str, log: &Path) -> Result<(), Error> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let moved =
        log.with_file_name(format!("{}.{stamp}", log.file_name().unwrap_or_default().to_string_lossy()));
    debug!(log = %log.display(), "rotating");
    std::fs::rename(log, &moved).map_err(|e| Error::io("rename", log, e))?;
    let mut put_back = RenameGuard { moved: &moved, log, needed: true };
    context.cri.reopen_container_log(id).await?;
    put_back.needed = false;
    remove_oldest(log, context.config.log_max_files);
    Ok(())
}

/// Renames a log back when dropped, unless `needed` is false: the runtime was not told to reopen it, or did
/// not answer, and still writes to the renamed file.
struct RenameGuard<'a> {
    moved: &'a Path,
    log: &'a Path,
    needed: bool,
}

impl Drop for RenameGuard<'_> {
    fn drop(&mut self) {
        // The runtime may have opened a new file before its answer was lost: both files are kept then.
        if self.needed
            && !self.log.exists()
            && let Err(error) = std::fs::rename(self.moved, self.log)
        {
            warn!(%error, log = %self.log.display(), "cannot move a log back");
        }
    }
}

/// Removes the oldest files of a log until at most `max_files` are left, the current one included.
fn remove_oldest(log: &Path, max_files: u32) {
    let rotated: Vec<_> = files(log).into_iter().filter(|file| file != log).collect();
    let keep = usize::try_from(max_files.saturating_sub(1)).unwrap_or(0);
    for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
        if let Err(error) = std::fs::remove_file(old) {
            warn!(%error, file = %old.display(), "cannot remove an old log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_go_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20260101-000001", "0.log.20260101-000002", "0.log.20260101-000003"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_oldest(&dir.path().join("0.log"), 3);
        let names: Vec<_> = files(&dir.path().join("0.log"))
            .iter()
            .map(|f| f.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["0.log.20260101-000002", "0.log.20260101-000003", "0.log"]);
    }
}
