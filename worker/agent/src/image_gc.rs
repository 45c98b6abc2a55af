//! Removes unused images when the disk that holds them is nearly full: kubelet's thresholds, least recently
//! used first. Called by `gc` each minute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::time::Instant;
use tracing::info;

use crate::Error;
use crate::context::Context;

/// Minimum time since an image was first seen, and since its last use, before it is removed: it may have been
/// pulled for a container that is about to start.
const MIN_AGE: Duration = Duration::from_secs(120);

/// Records of the node's images, kept between rounds.
#[derive(Debug, Default)]
pub struct ImageCollector {
    /// Times at which each image was first seen and last in use, by image id.
    seen: BTreeMap<String, (Instant, Instant)>,
}

impl ImageCollector {
    /// Records which images are in use, and removes unused ones if the disk usage has reached the threshold.
    pub async fn collect(&mut self, context: &Context) -> Result<(), Error> {
        let now = Instant::now();
        let in_use: BTreeSet<String> =
            context.cri.list_containers(None).await?.into_iter().map(|c| c.image_ref).collect();
        let sandbox_image = context.cri.sandbox_image().await?;
        let mut images = context.cri.list_images().await?;
        let ids: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.seen.retain(|id, _| ids.contains(id.as_str()));
        let used = |image: &k8s_cri::v1::Image| {
            let names = || image.repo_digests.iter().chain(&image.repo_tags);
            image.pinned
                || in_use.contains(&image.id)
                || names().any(|name| in_use.contains(name) || sandbox_image.as_ref() == Some(name))
        };
        for image in &images {
            let entry = self.seen.entry(image.id.clone()).or_insert((now, now));
            if used(image) {
                entry.1 = now;
            }
        }
        let Some(mut to_free) = excess(context).await? else { return Ok(()) };
        images.retain(|image| {
            let (first, last) = self.seen.get(&image.id).copied().unwrap_or((now, now));
            !used(image) && now.duration_since(first) >= MIN_AGE && now.duration_since(last) >= MIN_AGE
        });
        images.sort_by_key(|image| self.seen.get(&image.id).map(|(first, last)| (*last, *first)));
        for image in images {
            if to_free == 0 {
                break;
            }
            info!(image = image.id, bytes = image.size, "removing an unused image: the disk is filling");
            context.cri.remove_image(&image.id).await?;
            to_free = to_free.saturating_sub(image.size);
        }
        Ok(())
    }
}

/// Returns the bytes to free on the disk that holds images; `None` while its usage is below the threshold.
async fn excess(context: &Context) -> Result<Option<u64>, Error> {
    let info = context.cri.image_fs_info().await?;
    let mountpoint =
        info.image_filesystems.into_iter().next().and_then(|fs| fs.fs_id).map(|id| id.mountpoint);
    let Some(stat) = mountpoint.and_then(|path| statvfs(path.as_str()).ok()) else { return Ok(None) };
    let block = stat.fragment_size();
    let used = stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(block);
    // As in df, space reserved for root counts neither as used nor as available.
    let total = used.saturating_add(stat.blocks_available().saturating_mul(block)).max(1);
    Ok(bytes_to_free(used, total, context.config.image_gc_percent))
}

/// Returns the bytes used beyond the low mark; `None` if the usage is below the high mark.
fn bytes_to_free(used: u64, total: u64, (high, low): (u64, u64)) -> Option<u64> {
    let percent = used.saturating_mul(100) / total;
    (percent >= high).then(|| used.saturating_sub(total / 100 * low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_freed_down_to_the_low_mark_once_the_high_one_is_reached() {
        assert_eq!(bytes_to_free(84, 100, (85, 80)), None);
        assert_eq!(bytes_to_free(85, 100, (85, 80)), Some(5));
        assert_eq!(bytes_to_free(9_900, 10_000, (85, 80)), Some(1_900));
    }
}
