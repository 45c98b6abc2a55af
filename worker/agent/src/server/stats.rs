//! CPU and memory usage of the node and its pods: `/stats/summary` as JSON, `/metrics/resource` for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_cri::v1::ContainerStats;
use serde_json::{Value, json};

use super::{Body, text};
use crate::clock;
use crate::context::Context;
use crate::cri::labels;

struct Usage {
    cpu_nanos: u64,
    nano_cores: Option<u64>,
    working_set: u64,
    usage: u64,
    rss: u64,
    at: Value,
}

fn usage(stats: &ContainerStats) -> Usage {
    let cpu = stats.cpu.as_ref();
    let memory = stats.memory.as_ref();
    let at = cpu.and_then(|c| clock::from_nanos(c.timestamp)).unwrap_or_else(clock::now);
    Usage {
        cpu_nanos: cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value),
        nano_cores: cpu.and_then(|c| c.usage_nano_cores).map(|v| v.value),
        working_set: memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value),
        usage: memory.and_then(|m| m.usage_bytes).map_or(0, |v| v.value),
        rss: memory.and_then(|m| m.rss_bytes).map_or(0, |v| v.value),
        at: json!(at),
    }
}

fn shapes(usage: &Usage) -> (Value, Value) {
    let cpu = json!({"time": usage.at, "usageNanoCores": usage.nano_cores, "usageCoreNanoSeconds": usage.cpu_nanos});
    let memory = json!({"time": usage.at, "workingSetBytes": usage.working_set, "usageBytes": usage.usage, "rssBytes": usage.rss});
    (cpu, memory)
}

/// Serves `/stats/summary`.
pub async fn summary(context: &Context) -> Response<Body> {
    let stats = match context.cri.list_container_stats().await {
        Ok(stats) => stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut pods: BTreeMap<String, (Value, Vec<Value>, Usage)> = BTreeMap::new();
    for one in &stats {
        let labels = one.attributes.as_ref().map(|a| a.labels.clone()).unwrap_or_default();
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let uid = label(labels::POD_UID);
        let used = usage(one);
        let (cpu, memory) = shapes(&used);
        let container = json!({"name": label(labels::CONTAINER_NAME), "cpu": cpu, "memory": memory});
        let reference =
            json!({"name": label(labels::POD_NAME), "namespace": label(labels::POD_NAMESPACE), "uid": uid});
        match pods.get_mut(&uid) {
            Some((_, containers, total)) => {
                containers.push(container);
                total.cpu_nanos += used.cpu_nanos;
                total.nano_cores = total.nano_cores.zip(used.nano_cores).map(|(a, b)| a + b);
                total.working_set += used.working_set;
                total.usage += used.usage;
                total.rss += used.rss;
            }
            None => {
                pods.insert(uid, (reference, vec![container], used));
            }
        }
    }
    let node = node_usage();
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers, total)| {
            let (cpu, memory) = shapes(&total);
            json!({"podRef": reference, "cpu": cpu, "memory": memory, "containers": containers})
        })
        .collect();
    let (cpu, memory) = shapes(&node);
    super::json(
        &json!({"node": {"nodeName": context.config.node_name, "cpu": cpu, "memory": memory}, "pods": pods}),
    )
}

/// Reads the host's usage since boot from `/proc`.
fn node_usage() -> Usage {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // A jiffy is a hundredth of a second (USER_HZ) on every Linux that Kubernetes runs on; fields 4 and 5 are
    // idle times.
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    let busy: u64 = fields.iter().enumerate().filter(|(i, _)| ![3, 4].contains(i)).map(|(_, v)| v).sum();
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    let used = kib("MemTotal:").saturating_sub(kib("MemAvailable:")) * 1024;
    Usage {
        cpu_nanos: busy * 10_000_000,
        nano_cores: None,
        working_set: used,
        usage: used,
        rss: kib("AnonPages:") * 1024,
        at: json!(clock::now()),
    }
}

/// Serves `/metrics/resource`: kubelet's resource metrics.
pub async fn metrics(context: &Context) -> Response<Body> {
    match resources(context).await {
        Ok(metrics) => text(StatusCode::OK, Bytes::from(metrics)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// Returns kubelet's resource metrics, or why the runtime gives none.
pub async fn resources(context: &Context) -> Result<String, String> {
    let stats = context.cri.list_container_stats().await.map_err(|error| error.to_string())?;
    let mut out = format!(
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"{}\"}} 1\n",
        context.pods.all().iter().filter(|e| e.active).count(),
        context.config.node_name
    );
    let mut cpu = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let mut memory = String::from("# TYPE container_memory_working_set_bytes gauge\n");
    for one in &stats {
        let Some(attributes) = &one.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).map(String::as_str).unwrap_or_default();
        let names = format!(
            "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            label(labels::CONTAINER_NAME),
            label(labels::POD_NAMESPACE),
            label(labels::POD_NAME)
        );
        let used = usage(one);
        // Writing to a String cannot fail.
        let _ = writeln!(cpu, "container_cpu_usage_seconds_total{names} {}", used.cpu_nanos as f64 / 1e9);
        let _ = writeln!(memory, "container_memory_working_set_bytes{names} {}", used.working_set);
    }
    out.push_str(&cpu);
    out.push_str(&memory);
    Ok(out)
}
