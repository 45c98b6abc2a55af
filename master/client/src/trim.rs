//! What caches leave out. A pod of 3 KiB takes some 30 KB once decoded, most of it environment variables and
//! mounts that only its node needs, and every master holds all pods (`ops/docs/decisions/memory.md`). The
//! garbage collector holds the metadata of all objects, of which it reads little. Objects are trimmed one by
//! one as they are decoded, so that the memory of one serves for the next. Used by `list_watch.rs`; whoever
//! needs a whole object asks the API, and whoever writes one sends a patch.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DynamicObject, PartialObjectMeta};
use serde::{Deserialize, Deserializer};

/// Objects that a cache holds in part.
pub(crate) trait Trim {
    /// Drops what nobody who reads the cache looks at.
    fn trim(&mut self);
}

/// An object that is trimmed as it is decoded.
#[derive(Clone)]
pub(crate) struct Trimmed<T>(pub(crate) T);

impl<'de, T: Trim + Deserialize<'de>> Deserialize<'de> for Trimmed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = T::deserialize(deserializer)?;
        object.trim();
        Ok(Self(object))
    }
}

impl Trim for PartialObjectMeta<DynamicObject> {
    /// Keeps identity, owners and what delays a deletion.
    fn trim(&mut self) {
        self.types = None;
        let whole = std::mem::take(&mut self.metadata);
        self.metadata = ObjectMeta {
            name: whole.name,
            namespace: whole.namespace,
            uid: whole.uid,
            resource_version: whole.resource_version,
            owner_references: whole.owner_references,
            finalizers: whole.finalizers,
            deletion_timestamp: whole.deletion_timestamp,
            ..ObjectMeta::default()
        };
        shrink(&mut self.metadata.owner_references);
    }
}

impl Trim for Pod {
    /// Keeps what decides where a pod runs and whether it serves.
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(spec) = &mut self.spec {
            trim_spec(spec);
        }
        if let Some(status) = &mut self.status {
            let statuses = [&mut status.container_statuses, &mut status.init_container_statuses];
            for status in statuses.into_iter().flatten().flatten() {
                // The present state and resources are kept.
                (status.volume_mounts, status.user, status.last_state) = (None, None, None);
            }
            shrink(&mut status.conditions);
            shrink(&mut status.container_statuses);
            shrink(&mut status.init_container_statuses);
            status.ephemeral_container_statuses = None;
        }
    }
}

fn trim_spec(spec: &mut PodSpec) {
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let whole = std::mem::take(container);
        *container = Container {
            name: whole.name,
            image: whole.image,
            ports: whole.ports,
            resources: whole.resources,
            restart_policy: whole.restart_policy,
            ..Container::default()
        };
        shrink(&mut container.ports);
    }
    spec.containers.shrink_to_fit();
    shrink(&mut spec.init_containers);
    shrink(&mut spec.tolerations);
    shrink(&mut spec.topology_spread_constraints);
    spec.ephemeral_containers = None;
    spec.security_context = None;
    spec.host_aliases = None;
    spec.dns_config = None;
    let volumes = spec.volumes.take().unwrap_or_default();
    let volumes: Vec<Volume> = volumes.into_iter().filter(|volume| !found_on_any_node(volume)).collect();
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// Returns whether a volume does not matter for where its pod may run.
fn found_on_any_node(volume: &Volume) -> bool {
    let files = volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some();
    let local = volume.empty_dir.is_some() || volume.host_path.is_some();
    files || local || volume.projected.is_some()
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    list.iter_mut().for_each(Vec::shrink_to_fit);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trimmed_pod_keeps_what_decides_where_it_runs_and_whether_it_serves() {
        let kept = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}, "annotations": {"c": "d"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1",
                    "controller": true}], "finalizers": ["f"], "resourceVersion": "7"},
            "spec": {
                "nodeName": "w1", "nodeSelector": {"x": "y"}, "hostNetwork": true, "priority": 3,
                "schedulingGates": [{"name": "g"}], "restartPolicy": "Always",
                "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 5}],
                "readinessGates": [{"conditionType": "t"}],
                "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": "c"}}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [{"name": "i", "image": "i", "restartPolicy": "Always",
                    "resources": {"requests": {"cpu": "2"}}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "i", "imageID": "x", "ready": true,
                    "restartCount": 1, "state": {"running": {}}}]},
        });
        let mut whole = kept.clone();
        whole["metadata"]["managedFields"] = json!([{"manager": "m"}]);
        whole["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "b"}]);
        whole["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        whole["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 80}});
        whole["spec"]["initContainers"][0]["command"] = json!(["sh"]);
        whole["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "v", "emptyDir": {}}));
        whole["spec"]["securityContext"] = json!({"runAsUser": 1});
        whole["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 1}});
        // From text, as from the API, which does not say how long a list is.
        let Trimmed::<Pod>(trimmed) = serde_json::from_str(&whole.to_string()).unwrap();
        assert_eq!(serde_json::to_value(&trimmed).unwrap(), kept);
        assert_eq!(trimmed.spec.unwrap().tolerations.unwrap().capacity(), 1);
    }

    #[test]
    fn trimmed_metadata_keeps_what_the_garbage_collector_looks_at() {
        let kept = json!({
            "name": "c", "namespace": "n", "uid": "1", "resourceVersion": "7", "finalizers": ["f"],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "2"}],
        });
        let mut whole =
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": kept});
        whole["metadata"]["annotations"] = json!({"last": "applied"});
        whole["metadata"]["labels"] = json!({"a": "b"});
        let text = whole.to_string();
        let Trimmed::<PartialObjectMeta<DynamicObject>>(trimmed) = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&trimmed).unwrap(), json!({"metadata": kept}));
    }
}
