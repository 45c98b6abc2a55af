//! Command probes: healthy if the exit code is zero.

use std::time::Duration;

use super::worker::ProbeOutcome;
use crate::cri::Cri;

const MAX_OUTPUT_BYTES: usize = 10 << 10;

/// Probes once by running the command in the container.
pub async fn attempt(cri: &Cri, id: &str, command: &[String], timeout: Duration) -> ProbeOutcome {
    match cri.exec_sync(id, command, timeout).await {
        Ok(answer) if answer.exit_code == 0 => ProbeOutcome::Healthy,
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            output.truncate(MAX_OUTPUT_BYTES);
            ProbeOutcome::Failed(String::from_utf8_lossy(&output).into_owned())
        }
        Err(crate::Error::Cri { status, .. }) if status.code() == tonic::Code::DeadlineExceeded => {
            ProbeOutcome::Failed(format!(
                "command timed out: \"{}\" timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            ))
        }
        Err(error) => ProbeOutcome::Failed(error.to_string()),
    }
}
