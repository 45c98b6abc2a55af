//! Mirror pods: API objects that a node creates for the pods it runs from files. They may not refer to other
//! API objects. `service_account.rs` and `node_restriction.rs` call the checks.

use serde_json::Value;

use crate::json_fields::{self, JsonFields};

/// Kind of object that containers and volumes refer to by name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Secret,
    ConfigMap,
}

/// Volume sources that refer to a Secret, with the field of the reference.
const SECRET_REFERENCES: [(&str, &str); 9] = [
    ("azureFile", "secretName"),
    ("cephfs", "secretRef"),
    ("cinder", "secretRef"),
    ("csi", "nodePublishSecretRef"),
    ("flexVolume", "secretRef"),
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
];

/// Volume sources that need an API object, with Kubernetes' text for that kind of object.
const VOLUME_REFERENCES: [(&str, &str); 7] = [
    ("configMap", "configmaps (via configmap volumes)"),
    ("secret", "secrets (via secret volumes)"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("azureFile", "secrets (via azureFile volumes)"),
];

/// Sources of projected volumes that need an API object, with Kubernetes' text for that kind of object.
const PROJECTED_REFERENCES: [(&str, &str); 5] = [
    ("configMap", "configmaps (via projected volumes)"),
    ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// Returns whether a pod is marked as a mirror pod.
pub fn is_mirror(pod: &Value) -> bool {
    json_fields::annotations(pod).get("kubernetes.io/config.mirror").is_some()
}

/// Returns why the ServiceAccount plugin refuses a mirror pod; `None` where it accepts the pod.
pub fn credentials(pod: &Value) -> Option<&'static str> {
    let spec = pod.sub("spec");
    if !spec.text("serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    if refers_to(spec, Kind::Secret) {
        return Some("a mirror pod may not reference secrets");
    }
    let token = sources(spec).any(|source| source.has("serviceAccountToken"));
    token.then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// Returns the first kind of API object a pod refers to (`HasAPIObjectReference`); `None` where it refers to
/// none.
pub fn api_reference(pod: &Value) -> Option<&'static str> {
    let spec = pod.sub("spec");
    if !spec.text("serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    if refers_to(spec, Kind::Secret) {
        return Some("secrets");
    }
    if refers_to(spec, Kind::ConfigMap) {
        return Some("configmaps");
    }
    if !spec.items("resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    let named = |table: &[(&str, &'static str)], value: &Value| {
        table.iter().find(|(source, _)| value.has(source)).map(|(_, what)| *what)
    };
    let by_volume = spec.items("volumes").iter().find_map(|volume| named(&VOLUME_REFERENCES, volume));
    by_volume.or_else(|| sources(spec).find_map(|source| named(&PROJECTED_REFERENCES, source)))
}

/// Returns the sources of all projected volumes.
fn sources(spec: &Value) -> impl Iterator<Item = &Value> {
    spec.items("volumes").iter().flat_map(|volume| volume.sub("projected").items("sources"))
}

/// Returns whether containers, image pull secrets or volumes name an object of the kind.
fn refers_to(spec: &Value, kind: Kind) -> bool {
    let (whole, one_key, volume_source) = match kind {
        Kind::Secret => ("secretRef", "secretKeyRef", "secret"),
        Kind::ConfigMap => ("configMapRef", "configMapKeyRef", "configMap"),
    };
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let by_container = lists.iter().flat_map(|list| spec.items(list)).any(|container| {
        container.items("envFrom").iter().any(|source| source.has(whole))
            || container.items("env").iter().any(|variable| variable.sub("valueFrom").has(one_key))
    });
    let by_driver = |volume: &Value| {
        kind == Kind::Secret && SECRET_REFERENCES.iter().any(|(source, field)| volume.sub(source).has(field))
    };
    by_container
        || (kind == Kind::Secret && !spec.items("imagePullSecrets").is_empty())
        || spec.items("volumes").iter().any(|volume| volume.has(volume_source) || by_driver(volume))
        || sources(spec).any(|source| source.has(volume_source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_an_api_object_is_found() {
        let cases = [
            (json!({"serviceAccountName": "a"}), "serviceaccounts"),
            (json!({"imagePullSecrets": [{"name": "a"}]}), "secrets"),
            (json!({"containers": [{"envFrom": [{"secretRef": {"name": "a"}}]}]}), "secrets"),
            (json!({"volumes": [{"secret": {"secretName": "a"}}]}), "secrets"),
            (json!({"volumes": [{"csi": {"driver": "a"}}]}), "csidrivers (via CSI volumes)"),
            (json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {}}}]}]}), "configmaps"),
            (json!({"resourceClaims": [{"name": "a"}]}), "resourceclaims"),
            (json!({"volumes": [{"persistentVolumeClaim": {}}]}), "persistentvolumeclaims"),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                "serviceaccounts (via projected volumes)",
            ),
        ];
        for (spec, what) in cases {
            assert_eq!(api_reference(&json!({"spec": spec})), Some(what), "{spec}");
        }
        let free = json!({"volumes": [{"hostPath": {"path": "/"}}, {"emptyDir": {}}]});
        assert_eq!(api_reference(&json!({"spec": free})), None);
    }
}
