//! Metrics of the master itself: sizes, revisions reached, alarms. They are read at each scrape.

use consensus::{AlarmKind, Consensus};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounterVec, Opts, Registry};

/// Gathers all metrics of the master itself.
///
/// # Errors
///
/// Fails if two metrics have the same name, which only a change of this file can cause.
pub fn gather(consensus: &Consensus) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let registry = Registry::new();
    let (status, sizes) = (consensus.status(), consensus.store().sizes());
    // Prometheus values are floating point; these counts are exact up to 2^53.
    let figures = [
        ("ephor_log_bytes", "Bytes of the log on disk.", status.log_bytes),
        ("ephor_object_store_bytes", "Bytes of the object store on disk.", sizes.disk_bytes),
        ("ephor_objects", "Objects in the store.", sizes.objects),
        (
            "ephor_objects_bytes",
            "Bytes of the objects in the store, roughly as in memory.",
            sizes.object_bytes,
        ),
        ("ephor_revision", "The revision this replica has reached.", sizes.revision),
        ("ephor_compacted_revision", "History up to this revision is forgotten.", sizes.compacted),
        ("ephor_applied_index", "The last log entry applied here.", status.applied_index),
        (
            "ephor_watches",
            "Watches of the store, those of the master's own components among them.",
            sizes.watches,
        ),
        ("ephor_disk_free_bytes", "Free bytes where the data lies.", consensus.free_bytes()),
        ("process_resident_memory_bytes", "Resident memory of this process in bytes.", resident_bytes()),
    ];
    for (name, help, value) in figures {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value as f64);
        registry.register(Box::new(gauge))?;
    }
    let alarms = GaugeVec::new(Opts::new("ephor_alarm", "1 while this alarm is raised here."), &["alarm"])?;
    let raised = consensus.alarms();
    for kind in AlarmKind::ALL {
        let is_raised = raised.iter().any(|alarm| alarm.kind == kind.name());
        alarms.with_label_values(&[kind.name()]).set(f64::from(u8::from(is_raised)));
    }
    registry.register(Box::new(alarms))?;
    for counter in proto_env::counters::ALL {
        let counts = IntCounterVec::new(Opts::new(counter.name, counter.help), &[counter.label])?;
        for (value, count) in counter.values() {
            counts.with_label_values(&[value]).inc_by(count);
        }
        registry.register(Box::new(counts))?;
    }
    Ok(registry.gather())
}

/// Returns the resident memory of this process in bytes; 0 where /proc does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or_default() * 1024
}
