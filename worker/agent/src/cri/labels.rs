//! The labels and annotations by which kubelet finds its sandboxes and containers again; the same here, so that tools of its users
//! work and a restarted agent adopts what runs.

use std::collections::{BTreeMap, HashMap};

/// Pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Hash of what makes a container need a restart (its name and image).
pub const HASH: &str = "io.kubernetes.container.hash";
/// How often the container was restarted.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Where the container writes its last words.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// `File` or `FallbackToLogsOnError`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// The pod's grace period in seconds.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// The preStop hook as JSON, for the case that the pod object is gone when the container must stop.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Where a pod came from: `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// When it was seen first.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// The labels of a sandbox.
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

/// FNV-1a over the container's name and image: the hash in [`HASH`].
pub fn container_hash(name: &str, image: &str) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}
