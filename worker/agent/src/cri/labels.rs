//! kubelet's labels and annotations for identifying sandboxes and containers, so that tools written for
//! kubelet work and a restarted agent adopts running containers.

use std::collections::{BTreeMap, HashMap};

/// Label with the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label with the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label with the pod's UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label with the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation with the hash of the fields whose change restarts a container (name and image).
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation with the number of restarts of the container.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation with the path of the container's termination message file.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation with the termination message policy: `File` or `FallbackToLogsOnError`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation with the pod's grace period in seconds.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation with the preStop hook as JSON, in case the pod object is gone when the container must stop.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Annotation with the source of the pod, always `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation with the time at which the sandbox was configured.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// Builds the labels of a sandbox: the pod's own ones with its name, namespace and UID.
pub fn pod_labels(
    name: &str,
    namespace: &str,
    uid: &str,
    own: Option<&BTreeMap<String, String>>,
) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> =
        own.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(POD_NAME.to_owned(), name.to_owned());
    labels.insert(POD_NAMESPACE.to_owned(), namespace.to_owned());
    labels.insert(POD_UID.to_owned(), uid.to_owned());
    labels
}

/// Computes the hash in [`HASH`]: FNV-1a over the container's name and image.
pub fn container_hash(name: &str, image: &str) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}
