//! Runs postStart and preStop hooks: a command, an HTTP request or a sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::cri::Cri;
use crate::probes::{HttpRequest, http_get};

/// Runs a hook until it ends, for at most `timeout`; the error is a message.
pub async fn run(
    cri: &Cri,
    container: &Container,
    id: &str,
    ip: &str,
    handler: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    let hook = async {
        if let Some(action) = &handler.exec {
            let command = action.command.clone().unwrap_or_default();
            let answer = cri.exec_sync(id, &command, Duration::ZERO).await.map_err(|e| e.to_string())?;
            if answer.exit_code != 0 {
                let output = String::from_utf8_lossy(&answer.stderr);
                return Err(format!(
                    "command '{}' exited with {}: {output}",
                    command.join(" "),
                    answer.exit_code
                ));
            }
            return Ok(());
        }
        if let Some(action) = &handler.http_get {
            let port = crate::probes::resolve_port(&action.port, container.ports.as_deref())
                .ok_or_else(|| format!("couldn't find port: {:?}", action.port))?;
            let (status, _) = http_get(&HttpRequest::from_action(action, ip, port)).await?;
            if status.is_client_error() || status.is_server_error() {
                return Err(format!("HTTP lifecycle hook failed with statuscode: {}", status.as_u16()));
            }
            return Ok(());
        }
        if let Some(action) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        }
        Ok(())
    };
    tokio::time::timeout(timeout, hook)
        .await
        .unwrap_or_else(|_| Err("the hook did not end in time".to_owned()))
}
