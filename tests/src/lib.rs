//! The harness of the whole-system tests: real processes of the real binary in network namespaces, used
//! through its command line. A test starts a cluster, breaks it and observes it from outside; no crate of
//! Ephor is linked.
//!
//! `EPHOR_BIN` names the binary, `EPHOR_KUBECTL` the real kubectl,
//! `EPHOR_TEST_IMAGES` the directory of `tests/images/build`; `ops/test` sets all.

use std::time::Duration;

pub mod cluster;
pub mod figures;
pub mod hosts;
pub mod load;
pub mod masters;
pub mod s3;
pub mod strace;
pub mod wait;

pub use cluster::{Cluster, How};
pub use masters::{Hosts, octet};
pub use wait::{eventually, eventually_within};

/// Returns the time that an environment variable says, such as `90s` or `10m`, or `otherwise` if it is not set.
pub fn duration(variable: &str, otherwise: Duration) -> anyhow::Result<Duration> {
    let Ok(text) = std::env::var(variable) else { return Ok(otherwise) };
    let seconds = text.strip_suffix('s').map(|number| (number, 1));
    let Some((number, unit)) = seconds.or_else(|| text.strip_suffix('m').map(|number| (number, 60))) else {
        anyhow::bail!("{variable}={text}: it ends in s or m");
    };
    Ok(Duration::from_secs(number.parse::<u64>()? * unit))
}

/// Checks that an output contains every one of the `wanted` texts.
pub fn says(output: &str, wanted: &[&str]) -> anyhow::Result<()> {
    for text in wanted {
        anyhow::ensure!(output.contains(text), "expected {text:?} in:\n{output}");
    }
    Ok(())
}
