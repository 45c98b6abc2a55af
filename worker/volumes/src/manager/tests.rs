//! Whole pods' volumes against objects held in memory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::*;
use crate::source::TokenRequest;

#[derive(Default)]
struct Objects {
    config_map: Mutex<Option<Arc<ConfigMap>>>,
}

impl Objects {
    fn put(&self, value: &str) {
        let object =
            serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"key": value}})).unwrap();
        *self.config_map.lock().unwrap() = Some(Arc::new(object));
    }
}

#[async_trait]
impl ObjectSource for Objects {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        Ok(self.config_map.lock().unwrap().clone())
    }
    async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<Secret>>, Error> {
        let object = json!({"metadata": {"name": "s"}, "data": {"password": "aHVudGVyMg=="}});
        Ok(Some(Arc::new(serde_json::from_value(object).unwrap())))
    }
    async fn service_account_token(&self, request: &TokenRequest) -> Result<String, Error> {
        Ok(format!("token-for-{}", request.service_account))
    }
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
        "spec": {
            "containers": [{"name": "c"}],
            "serviceAccountName": "robot",
            "securityContext": {"fsGroup": 2000},
            "volumes": [
                {"name": "config", "configMap": {"name": "cm", "defaultMode": 256}},
                {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o440}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}},
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
        }
    }))
    .unwrap()
}

#[tokio::test]
async fn a_pod_gets_its_volumes_sees_updates_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let layout = PodLayout::new(root.path(), "u");
    let (pod, allocatable, objects) = (pod(), BTreeMap::new(), Objects::default());
    let fields = PodFields { pod: &pod, host_ips: &[], pod_ips: &[], allocatable: &allocatable };

    let (volume, error) = mount_pod_volumes(&layout, fields, &objects).await.unwrap_err();
    assert_eq!((volume.as_str(), error.to_string().as_str()), ("config", "configmap \"cm\" not found"));

    objects.put("one");
    let mounted = mount_pod_volumes(&layout, fields, &objects).await.unwrap();
    let path = |name: &str| mounted[name].path.clone();
    assert_eq!(std::fs::read_to_string(path("config").join("key")).unwrap(), "one");
    let secret = std::fs::metadata(path("secret").join("password")).unwrap();
    assert_eq!((secret.gid(), secret.permissions().mode() & 0o777), (2000, 0o440));
    assert!(tmpfs::is_mount_point(&path("secret")).unwrap());
    assert_eq!(std::fs::read_to_string(path("all").join("token")).unwrap(), "token-for-robot");
    assert_eq!(std::fs::read_to_string(path("all").join("labels")).unwrap(), "app=\"x\"");
    let disk = std::fs::metadata(path("disk")).unwrap();
    assert_eq!((disk.gid(), disk.permissions().mode() & 0o7777), (2000, 0o2777));
    assert!(tmpfs::is_mount_point(&path("memory")).unwrap());

    objects.put("two");
    mount_pod_volumes(&layout, fields, &objects).await.unwrap();
    assert_eq!(std::fs::read_to_string(path("config").join("key")).unwrap(), "two");

    unmount_pod_volumes(&layout).unwrap();
    assert!(!layout.pod_dir().exists());
}
