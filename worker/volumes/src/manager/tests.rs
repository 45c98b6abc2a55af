//! Tests of the volumes of whole pods, with objects held in memory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::*;
use crate::object_source::TokenRequest;

#[derive(Default)]
struct Objects {
    config_map: Mutex<Option<Arc<ConfigMap>>>,
    /// Whether the API server is unreachable.
    away: AtomicBool,
}

impl Objects {
    fn put(&self, value: &str) {
        let object =
            serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"key": value}})).unwrap();
        *self.config_map.lock().unwrap() = Some(Arc::new(object));
    }

    fn ask(&self, kind: &'static str) -> Result<(), Error> {
        if self.away.load(Ordering::Relaxed) {
            let (namespace, name, message) = ("n".to_owned(), "o".to_owned(), "away".to_owned());
            return Err(Error::Fetch { kind, namespace, name, message });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectSource for Objects {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.ask("configmap")?;
        Ok(self.config_map.lock().unwrap().clone())
    }
    async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<Secret>>, Error> {
        self.ask("secret")?;
        let object = json!({"metadata": {"name": "s"}, "data": {"password": "aHVudGVyMg=="}});
        Ok(Some(Arc::new(serde_json::from_value(object).unwrap())))
    }
    async fn service_account_token(&self, request: &TokenRequest) -> Result<String, Error> {
        self.ask("token")?;
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

/// A root directory for pods, whose mounts are removed when this value is dropped.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn layout(&self) -> PodLayout {
        PodLayout::new(self.0.path(), "u")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        tmpfs::unmount_below(self.0.path()).unwrap();
    }
}

async fn mount(root: &Root, pod: &Pod, objects: &Objects) -> SetUpResult {
    let allocatable = BTreeMap::new();
    let fields = PodFields { pod, host_ips: &[], pod_ips: &[], allocatable: &allocatable };
    mount_pod_volumes(&root.layout(), &VolumeLock::default(), fields, objects).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_pod_gets_its_volumes_sees_updates_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = Root::new();
    let (pod, objects) = (pod(), Objects::default());

    let set_up = mount(&root, &pod, &objects).await;
    let (volume, error) = set_up.missing().unwrap();
    assert_eq!((volume, error.to_string().as_str()), ("config", "configmap \"cm\" not found"));
    assert_eq!(set_up.mounted.len(), 4, "a volume that fails does not stop the others");

    objects.put("one");
    let set_up = mount(&root, &pod, &objects).await;
    assert!(set_up.errors.is_empty());
    let path = |name: &str| set_up.mounted[name].path.clone();
    assert_eq!(std::fs::read_to_string(path("config").join("key")).unwrap(), "one");
    let secret = std::fs::metadata(path("secret").join("password")).unwrap();
    assert_eq!((secret.gid(), secret.permissions().mode() & 0o777), (2000, 0o440));
    assert!(tmpfs::is_mount_point(&path("secret")).unwrap());
    assert_eq!(std::fs::read_to_string(path("all").join("token")).unwrap(), "token-for-robot");
    assert_eq!(std::fs::read_to_string(path("all").join("labels")).unwrap(), "app=\"x\"");
    assert_eq!((std::fs::metadata(path("disk")).unwrap().gid(), mode(&path("disk"))), (2000, 0o2777));
    assert!(tmpfs::is_mount_point(&path("memory")).unwrap());
    assert_eq!((std::fs::metadata(path("memory")).unwrap().gid(), mode(&path("memory"))), (2000, 0o3777));

    objects.put("two");
    mount(&root, &pod, &objects).await;
    assert_eq!(std::fs::read_to_string(path("config").join("key")).unwrap(), "two");

    unmount_pod_volumes(&root.layout()).unwrap();
    assert!(!root.layout().pod_dir().exists());
}

#[tokio::test]
async fn what_containers_do_to_an_empty_dir_stays_and_never_reaches_the_host() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (root, host) = (Root::new(), tempfile::tempdir().unwrap());
    let secret = host.path().join("secret");
    std::fs::write(&secret, "x").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (mut pod, objects) = (pod(), Objects::default());
    objects.put("one");
    for policy in ["Always", "OnRootMismatch"] {
        let security = pod.spec.as_mut().and_then(|s| s.security_context.as_mut()).unwrap();
        security.fs_group_change_policy = Some(policy.to_owned());
        for name in ["disk", "memory"] {
            let path = mount(&root, &pod, &objects).await.mounted[name].path.clone();
            // A database makes its directory private, and an attacker creates a symlink.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let _ = std::os::unix::fs::symlink(&secret, path.join("link"));
            mount(&root, &pod, &objects).await;
            assert_eq!(mode(&path), 0o700, "{name}");
            let target = std::fs::metadata(&secret).unwrap();
            assert_eq!((target.gid(), target.mode() & 0o7777), (0, 0o600), "{name}");
        }
    }
}

#[tokio::test]
async fn volumes_that_were_set_up_stay_usable_while_nothing_can_be_asked() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (root, pod, objects) = (Root::new(), pod(), Objects::default());
    objects.put("one");
    objects.away.store(true, Ordering::Relaxed);
    assert_eq!(mount(&root, &pod, &objects).await.missing().unwrap().0, "config");
    objects.away.store(false, Ordering::Relaxed);
    let before = mount(&root, &pod, &objects).await.mounted;

    objects.away.store(true, Ordering::Relaxed);
    let set_up = mount(&root, &pod, &objects).await;
    assert_eq!(set_up.mounted, before);
    assert_eq!(
        set_up.errors.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["config", "secret", "all"]
    );
    assert!(set_up.missing().is_none());
    assert_eq!(std::fs::read_to_string(before["all"].path.join("token")).unwrap(), "token-for-robot");

    objects.away.store(false, Ordering::Relaxed);
    *objects.config_map.lock().unwrap() = None;
    let set_up = mount(&root, &pod, &objects).await;
    assert_eq!(set_up.errors.len(), 1, "the ConfigMap was deleted");
    assert!(set_up.missing().is_none());
    assert_eq!(std::fs::read_to_string(before["config"].path.join("key")).unwrap(), "one");
}

#[tokio::test]
async fn work_that_hangs_holds_one_thread_and_no_other_begins() {
    let lock = VolumeLock::default();
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let first = tokio::spawn({
        let (lock, ended) = (lock.clone(), ended.clone());
        let work = move || {
            begun.send(()).unwrap();
            hung.recv().unwrap();
            ended.store(true, Ordering::SeqCst);
            Ok(())
        };
        async move { lock.run(work).await }
    });
    begins.await.unwrap();
    let second = tokio::spawn(async move { lock.run(move || Ok(ended.load(Ordering::SeqCst))).await });
    // Work that need not wait for the first would be done by then.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!second.is_finished());
    release.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert!(second.await.unwrap().unwrap(), "the second one began before the first had ended");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_work_that_hangs_is_told() {
    let lock = VolumeLock::default();
    let _hung = lock.0.clone().lock_owned().await;
    let error = lock.run(|| Ok(())).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out waiting for the condition");
}
