//! Resource usage of containers and pods, read from their cgroups.

use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1;
use tonic::Status;

use super::{Service, blocking};
use crate::cgroup::CgroupUsage;
use crate::container::Container;
use crate::paths::container_file;
use crate::sandbox::SandboxRecord;
use crate::shim::plan::now;

impl Service {
    pub(super) async fn container_stats(
        &self,
        container: Arc<Container>,
    ) -> Result<v1::ContainerStats, Status> {
        let record = &container.record;
        let cgroup = self.hierarchies.cgroup(&record.cgroup);
        let upper = self.paths.container_root(&record.id).join(container_file::UPPER);
        let mountpoint = self.paths.root.to_string_lossy().into_owned();
        let running = container.progress.borrow().is_running();
        let (usage, (bytes, inodes)) = blocking(move || {
            let usage = if running { cgroup.usage() } else { CgroupUsage::default() };
            (usage, disk_usage(&upper))
        })
        .await?;
        let timestamp = now();
        Ok(v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            cpu: Some(cpu(&usage, timestamp)),
            memory: Some(memory(&usage, timestamp)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap: Some(v1::SwapUsage {
                timestamp,
                swap_available_bytes: None,
                swap_usage_bytes: value(usage.swap_bytes),
            }),
        })
    }

    pub(super) async fn list_container_stats(
        &self,
        filter: &v1::ContainerStatsFilter,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let mut stats = Vec::new();
        for container in self.containers() {
            let record = &container.record;
            let wanted = super::filter::id_matches(&record.id, &filter.id)
                && super::filter::id_matches(&record.sandbox_id, &filter.pod_sandbox_id)
                && super::filter::labels_match(&record.config.labels, &filter.label_selector)
                && container.progress.borrow().is_running();
            if wanted {
                stats.push(self.container_stats(container).await?);
            }
        }
        Ok(stats)
    }

    pub(super) async fn sandbox_stats(&self, record: &SandboxRecord) -> Result<v1::PodSandboxStats, Status> {
        let cgroup = self.hierarchies.cgroup(&record.cgroup);
        let usage = blocking(move || cgroup.usage()).await?;
        let timestamp = now();
        let filter = v1::ContainerStatsFilter { pod_sandbox_id: record.id.clone(), ..Default::default() };
        Ok(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(cpu(&usage, timestamp)),
                memory: Some(memory(&usage, timestamp)),
                network: None,
                process: Some(v1::ProcessUsage { timestamp, process_count: value(usage.processes) }),
                containers: self.list_container_stats(&filter).await?,
            }),
            windows: None,
        })
    }

    pub(super) async fn list_sandbox_stats(
        &self,
        filter: &v1::PodSandboxStatsFilter,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let mut stats = Vec::new();
        for sandbox in self.sandboxes() {
            let record = sandbox.record();
            let wanted = super::filter::id_matches(&record.id, &filter.id)
                && super::filter::labels_match(&record.config.labels, &filter.label_selector);
            if wanted && record.ready {
                stats.push(self.sandbox_stats(&record).await?);
            }
        }
        Ok(stats)
    }

    /// Returns the disk space taken by images, and by the containers' writable layers.
    pub(super) async fn filesystem_info(&self) -> Result<v1::ImageFsInfoResponse, Status> {
        let images = self.images.clone();
        let containers = self.paths.containers_root();
        let (usage, (bytes, inodes)) = blocking(move || (images.usage(), disk_usage(&containers))).await?;
        let usage = usage.map_err(super::internal("failed to read image usage"))?;
        let filesystem = |path: &Path, bytes, inodes| v1::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
            used_bytes: value(bytes),
            inodes_used: value(inodes),
        };
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(self.images.root(), usage.bytes, usage.inodes)],
            container_filesystems: vec![filesystem(&self.paths.containers_root(), bytes, inodes)],
        })
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(usage: &CgroupUsage, timestamp: i64) -> v1::CpuUsage {
    v1::CpuUsage { timestamp, usage_core_nano_seconds: value(usage.cpu_nanoseconds), usage_nano_cores: None }
}

fn memory(usage: &CgroupUsage, timestamp: i64) -> v1::MemoryUsage {
    let limit = Some(usage.memory_limit_bytes).filter(|l| *l != 0);
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(usage.working_set_bytes),
        available_bytes: limit.and_then(|l| value(l.saturating_sub(usage.working_set_bytes))),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

/// Returns bytes on disk and number of entries below a directory. Files removed meanwhile do not count.
fn disk_usage(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut total = (0, 0);
    for entry in walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok) {
        if let Ok(metadata) = entry.metadata() {
            total.0 += metadata.blocks() * 512;
            total.1 += 1;
        }
    }
    total
}
