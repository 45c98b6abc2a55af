//! Runs ExecSync itself; issues tickets of the streaming server for Exec, Attach and PortForward.

use std::time::Duration;

use k8s_cri::v1;
use tokio::net::UnixStream;
use tonic::Status;

use super::sandboxes::netns;
use super::{Service, internal};
use crate::shim::client::ShimClientError;
use crate::shim::protocol::{StreamFrame, read_frame};
use crate::streaming::Ticket;

/// Maximum number of bytes that ExecSync keeps of each output stream; it drops the rest.
const OUTPUT_LIMIT: usize = 16 << 20;

impl Service {
    /// Runs a command until it ends; returns its output and exit code.
    pub(super) async fn exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let container = self.running(&request.container_id)?;
        let run = async {
            let stream =
                container.shim.exec(container.id(), &request.cmd, false, false).await.map_err(exec_failed)?;
            collect(stream).await.map_err(internal("failed to exec in container"))
        };
        match u64::try_from(request.timeout).unwrap_or(0) {
            0 => run.await,
            // On a timeout the stream is dropped, whereupon the shim kills the command.
            seconds => tokio::time::timeout(Duration::from_secs(seconds), run).await.unwrap_or_else(|_| {
                let text = format!(
                    "failed to exec in container: timeout {seconds}s exceeded: context deadline exceeded"
                );
                Err(Status::deadline_exceeded(text))
            }),
        }
    }

    /// Returns the container; fails if it does not run.
    fn running(&self, id: &str) -> Result<std::sync::Arc<crate::container::Container>, Status> {
        let container = self.container(id)?;
        let running = container.progress.borrow().is_running();
        match running {
            true => Ok(container),
            false => Err(Status::unknown(format!("container \"{}\" is not running", container.id()))),
        }
    }

    pub(super) fn exec(&self, request: v1::ExecRequest) -> Result<String, Status> {
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !request.stdin && !request.stdout && !request.stderr {
            return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
        }
        let container = self.running(&request.container_id)?;
        Ok(self.streams.issue(Ticket::Exec {
            shim: container.shim.clone(),
            container: container.id().to_owned(),
            arguments: request.cmd,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        }))
    }

    pub(super) fn attach(&self, request: v1::AttachRequest) -> Result<String, Status> {
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        let container = self.running(&request.container_id)?;
        Ok(self.streams.issue(Ticket::Attach {
            shim: container.shim.clone(),
            container: container.id().to_owned(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        }))
    }

    pub(super) fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Status> {
        let record = self.sandbox(&request.pod_sandbox_id)?.record();
        if !record.ready {
            return Err(Status::unknown(format!("sandbox container \"{}\" is not running", record.id)));
        }
        let namespace = (!record.host_network()).then(|| netns(&self.paths.sandbox_state(&record.id)));
        Ok(self.streams.issue(Ticket::PortForward { namespace }))
    }
}

fn exec_failed(error: ShimClientError) -> Status {
    Status::unknown(format!("failed to exec in container: {error}"))
}

async fn collect(mut stream: UnixStream) -> std::io::Result<v1::ExecSyncResponse> {
    let mut response = v1::ExecSyncResponse::default();
    let keep = |into: &mut Vec<u8>, bytes: &[u8]| {
        let room = OUTPUT_LIMIT.saturating_sub(into.len());
        into.extend_from_slice(&bytes[..bytes.len().min(room)]);
    };
    loop {
        match read_frame(&mut stream).await? {
            Some(StreamFrame::Stdout(bytes)) => keep(&mut response.stdout, &bytes),
            Some(StreamFrame::Stderr(bytes)) => keep(&mut response.stderr, &bytes),
            Some(StreamFrame::Exit(code)) => {
                response.exit_code = code;
                return Ok(response);
            }
            Some(_) => {}
            None => {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    "the pod's shim went away",
                ));
            }
        }
    }
}
