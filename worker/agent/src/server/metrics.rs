//! `/metrics` of the node: what this process counts, when the node's certificates end, and the kubelet's resource
//! metrics.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Response, StatusCode};
use proto_env::counters::{self, Counter};

use super::{Body, stats, text};
use crate::config::CertificateEnds;
use crate::context::Context;

const ENDS: &str = "ephor_certificate_expiration_timestamp_seconds";

/// Serves `/metrics`. Without an answer of the runtime its metrics are missing.
pub async fn serve(context: &Context) -> Response<Body> {
    let mut out = of_process(&counters::ALL, &context.config.certificates.borrow());
    match stats::resources(context).await {
        Ok(resources) => out.push_str(&resources),
        Err(error) => {
            tracing::debug!(%error, "no resource metrics");
        }
    }
    text(StatusCode::OK, Bytes::from(out))
}

/// Returns the metrics of this process, as the masters' `/metrics` names them.
fn of_process(counters: &[&Counter], ends: &CertificateEnds) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for counter in counters {
        let name = counter.name;
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} counter", counter.help);
        for (value, count) in counter.values() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(out, "{name}{{{}=\"{value}\"}} {count}", counter.label);
        }
    }
    let _ = writeln!(
        out,
        "# HELP {ENDS} When certificates of this node end, in seconds since 1970.\n# TYPE {ENDS} gauge"
    );
    for (name, end) in ends {
        let seconds = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let _ = writeln!(out, "{ENDS}{{certificate=\"{name}\"}} {seconds}");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_counter_and_the_end_of_every_certificate_are_shown() {
        counters::TASK_PANICS.add("a \"task\"");
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let text = of_process(&counters::ALL, &vec![("client", end), ("serving", end)]);
        for counter in counters::ALL {
            assert!(text.contains(&format!("# TYPE {} counter\n", counter.name)), "{text}");
        }
        for line in [
            "ephor_task_panics_total{task=\"a \\\"task\\\"\"} 1",
            "ephor_certificate_expiration_timestamp_seconds{certificate=\"client\"} 1800000000",
            "ephor_certificate_expiration_timestamp_seconds{certificate=\"serving\"} 1800000000",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }
}
