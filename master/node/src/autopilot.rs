//! Events about membership changes that the leader made by itself, so that
//! `kubectl get events` shows them. They are about Service `default/kubernetes`, which
//! stands for the masters. `leader.rs` runs it for one leadership.

use std::sync::Arc;

use consensus::Consensus;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use master_client::{EventType, Recorder};
use proto_env::Clock;
use tokio_util::sync::CancellationToken;

/// Records an event for every such change until `shutdown`.
pub async fn report(
    consensus: Arc<Consensus>,
    client: Client,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let recorder = Recorder::start(client, "ephor-autopilot", clock, shutdown.clone());
    let mut actions = consensus.autopilot_actions();
    actions.mark_unchanged();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = actions.changed() => if changed.is_err() { return },
        }
        let text = actions.borrow_and_update().text.clone();
        let masters = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some("default".to_owned()),
            name: Some("kubernetes".to_owned()),
            ..ObjectReference::default()
        };
        recorder.event(masters, EventType::Warning, "MastersChanged", text);
    }
}
