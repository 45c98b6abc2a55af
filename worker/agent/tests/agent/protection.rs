//! Fields that protect reach the runtime; otherwise the pod does not start and its status or an event says
//! why.

use k8s_cri::v1::security_profile::ProfileType;
use serde_json::{Value, json};

use crate::world::{LIMIT, World, is_ready, named_pod, pod, waiting};

fn failed(reason: &'static str, message: &'static str) -> impl Fn(Option<&Value>) -> bool {
    move |pod| {
        pod.is_some_and(|pod| {
            let status = &pod["status"];
            status["phase"] == "Failed" && status["reason"] == reason && status["message"] == message
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_node_cannot_enforce_is_refused() {
    let world = World::start();
    world.api.put_pod(named_pod(
        "sysctl",
        json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    ));
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    world.api.wait_for_pod("sysctl", LIMIT, failed("SysctlForbidden", message)).await;

    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let profile = json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}});
        world.api.put_pod(named_pod("apparmor", profile));
        let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        world.api.wait_for_pod("apparmor", LIMIT, failed("AppArmor", message)).await;
    }

    world.api.put_pod(named_pod("userns", json!({"hostUsers": false})));
    world.api.put_pod(named_pod("class", json!({"runtimeClassName": "no"})));
    for message in [
        "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces",
        "Failed to create pod sandbox: runtimeclass.node.k8s.io \"no\" not found",
    ] {
        let said = |api: &crate::fake_api::FakeApi| {
            api.notes().contains(&("FailedCreatePodSandBox".to_owned(), message.to_owned()))
        };
        world.api.wait(message, LIMIT, said).await;
    }
    assert!(world.runtime.sandboxes().is_empty());

    let volume = json!({
        "containers": [{"name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent", "volumeMounts": [
            {"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Enabled"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]});
    world.api.put_pod(named_pod("rro", volume));
    let message = "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not \
                   supported by the runtime";
    let told = |pod: Option<&Value>| {
        pod.is_some_and(|pod| waiting(pod) == ("CreateContainerConfigError".to_owned(), message.to_owned()))
    };
    world.api.wait_for_pod("rro", LIMIT, told).await;
}

#[tokio::test(start_paused = true)]
async fn seccomp_defaults_to_the_runtimes_profile_and_a_runtime_class_names_its_handler() {
    let world = World::start();
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "kata"});
    world.api.put_object("/apis/node.k8s.io/v1/runtimeclasses", "sandboxed", Some(class));
    world.api.put_pod(pod(json!({
        "runtimeClassName": "sandboxed",
        "containers": [
            {"name": "default", "image": "test/image:1", "imagePullPolicy": "IfNotPresent"},
            {"name": "open", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
             "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]})));
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    let profile = |name: &str| {
        let linux = world.runtime.container(name).and_then(|c| c.config.linux).expect("a container");
        linux.security_context.and_then(|s| s.seccomp).expect("a profile").profile_type()
    };
    assert_eq!((profile("default"), profile("open")), (ProfileType::RuntimeDefault, ProfileType::Unconfined));
    let sandbox = world.runtime.sandboxes().remove(0);
    assert_eq!(sandbox.handler, "kata");
    let security = sandbox.config.linux.and_then(|l| l.security_context).expect("a context");
    assert_eq!(security.seccomp.expect("a profile").profile_type(), ProfileType::RuntimeDefault);
}
