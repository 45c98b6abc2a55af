//! ServiceAccount: gives every pod an existing account, and a token volume unless the pod or the account opts
//! out. Mirror pods get neither.

use proto_api::status::Status;
use serde_json::{Map, Value, json};

use super::{Attributes, mirror_pod, mountable_secrets};
use crate::json_fields::{self, JsonFields};
use crate::object_lookup::ObjectLookup;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Lifetime of mounted tokens: an hour and seven seconds, recognizable as admission's default.
const TOKEN_SECONDS: i64 = 3607;

/// Sets the account of a new pod and mounts its token.
pub async fn admit(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    pod: &mut Value,
) -> Result<(), Status> {
    let pod_name = json_fields::name(pod).to_owned();
    let namespace = attributes.namespace;
    // A node made this pod from a file; it would not recognize its own pod after additions.
    if mirror_pod::is_mirror(pod) {
        return mirror_pod::credentials(pod).map_or(Ok(()), |why| Err(attributes.forbidden(&pod_name, why)));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let text = |key: &str| spec.get(key).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
    let name =
        text("serviceAccountName").or_else(|| text("serviceAccount")).unwrap_or_else(|| "default".to_owned());
    spec.insert("serviceAccountName".to_owned(), Value::from(name.as_str()));
    spec.insert("serviceAccount".to_owned(), Value::from(name.as_str()));
    let Some(account) = objects.find("serviceaccounts", namespace, &name).await? else {
        return Err(attributes.forbidden(&pod_name, not_found(namespace, &name)));
    };
    let asked = |v: &Value| v.get("automountServiceAccountToken").and_then(Value::as_bool);
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| asked(&account))
        .unwrap_or(true);
    if automount {
        mount_token(spec, &format!("{VOLUME_PREFIX}{}", objects.suffix(5)));
    }
    let has_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    if let (false, Some(secrets)) = (has_secrets, account.get("imagePullSecrets").filter(|s| !s.is_null())) {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    mountable_secrets::check_pod(&account, pod)
        .map_or(Ok(()), |why| Err(attributes.forbidden(&pod_name, why)))
}

/// Checks that the Secrets which a pod's ephemeral containers name are allowed by the pod's account.
///
/// # Errors
///
/// 403 for a Secret the account does not list.
pub async fn check_ephemeral_containers(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    pod: &Value,
    old: &Value,
) -> Result<(), Status> {
    let (namespace, pod_name) = (attributes.namespace, json_fields::name(old));
    let name = old.sub("spec").text("serviceAccountName");
    if name.is_empty() {
        let why = format!("no service account specified for pod {namespace}/{pod_name}");
        return Err(attributes.forbidden(pod_name, why));
    }
    let Some(account) = objects.find("serviceaccounts", namespace, name).await? else {
        return Err(attributes.forbidden(pod_name, not_found(namespace, name)));
    };
    let refused = mountable_secrets::check_ephemeral_containers(&account, pod);
    refused.map_or(Ok(()), |why| Err(attributes.forbidden(pod_name, why)))
}

fn not_found(namespace: &str, name: &str) -> String {
    format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")
}

/// Mounts the token into every container that has no mount at the token's path yet.
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
