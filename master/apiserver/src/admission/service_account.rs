//! ServiceAccount: every pod has one that exists, and a token volume unless it or the account says no.

use proto_api::status::Status;
use serde_json::{Map, Value, json};

use crate::registry::write::Write;
use crate::registry::{Registry, metadata};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and seven seconds: recognizable as the admission's own default.
const TOKEN_SECONDS: i64 = 3607;

/// Sets the account and mounts its token.
pub async fn admit(registry: &Registry, write: Write<'_>, pod: &mut Value) -> Result<(), Status> {
    let pod_name = metadata::text(pod, "name").to_owned();
    let namespace = write.target.namespace;
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let text = |key: &str| spec.get(key).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
    let name =
        text("serviceAccountName").or_else(|| text("serviceAccount")).unwrap_or_else(|| "default".to_owned());
    spec.insert("serviceAccountName".to_owned(), Value::from(name.as_str()));
    spec.insert("serviceAccount".to_owned(), Value::from(name.as_str()));
    let Some(account) = find(registry, namespace, &name).await? else {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(Status::forbidden("", "pods", &pod_name, why));
    };
    let asked = |v: &Value| v.get("automountServiceAccountToken").and_then(Value::as_bool);
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| asked(&account))
        .unwrap_or(true);
    if automount {
        mount_token(spec, &format!("{VOLUME_PREFIX}{}", registry.random.suffix(5)));
    }
    let has_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    if let (false, Some(secrets)) = (has_secrets, account.get("imagePullSecrets").filter(|s| !s.is_null())) {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    Ok(())
}

async fn find(registry: &Registry, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
    if let Some(account) = registry.peek("", "serviceaccounts", namespace, name) {
        return Ok(Some(account));
    }
    registry.barrier().await?;
    Ok(registry.peek("", "serviceaccounts", namespace, name))
}

/// Mounts the token into every container that has nothing there yet.
fn mount_token(spec: &mut Map<String, Value>, fresh_name: &str) {
    let volumes = spec.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    let named = |v: &Value| v.get("name").and_then(Value::as_str).map(str::to_owned);
    let existing = volumes.iter().filter_map(named).find(|n| n.starts_with(VOLUME_PREFIX));
    let name = existing.clone().unwrap_or_else(|| fresh_name.to_owned());
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            let mut mounts =
                container.get("volumeMounts").and_then(Value::as_array).cloned().unwrap_or_default();
            if mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH)) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            container.insert("volumeMounts".to_owned(), Value::Array(mounts));
            needed = true;
        }
    }
    if needed && existing.is_none() {
        let mut volumes = volumes;
        volumes.push(token_volume(&name));
        spec.insert("volumes".to_owned(), Value::Array(volumes));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}
