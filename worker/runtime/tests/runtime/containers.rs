//! Tests the runtime as a program, with real images, containers and shims, over CRI. Needs root.

use std::time::{Duration, Instant};

use crate::test_runtime::{TestRuntime, ended, exec, images, is_root, status, until};
use anyhow::{Context, Result, ensure};
use k8s_cri::v1;

#[tokio::test]
async fn an_image_is_loaded_and_a_corrupt_archive_leaves_nothing() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    let good = std::fs::read(images()?.join("web-1.tar"))?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x40;
    let error = node.load(bad).await.expect_err("a corrupt archive was accepted");
    ensure!(error.to_string().contains("digest mismatch"), "{error}");
    let error = node.load(good[..middle].to_vec()).await.expect_err("half an archive was accepted");
    ensure!(error.to_string().contains("cut off") || error.to_string().contains("corrupt"), "{error}");
    let error = node.load(b"no tar at all".to_vec()).await.expect_err("rubbish was accepted");
    ensure!(!error.to_string().is_empty());
    let blobs = node.directory.path().join("root/images/blobs/sha256");
    ensure!(std::fs::read_dir(&blobs)?.count() == 0, "blobs of refused archives are left");

    ensure!(node.load(good).await? == ["ephor.test/web:1"]);
    let mut service = node.image_service().await?;
    let image = |name: &str| Some(v1::ImageSpec { image: name.into(), ..Default::default() });
    let request = v1::ImageStatusRequest { image: image("ephor.test/web:1"), verbose: false };
    let found = service.image_status(request).await?.into_inner().image.context("the image is not there")?;
    ensure!(found.repo_tags == ["ephor.test/web:1"] && found.size > 1_000_000, "{found:?}");
    service.remove_image(v1::RemoveImageRequest { image: image(&found.id) }).await?;
    ensure!(std::fs::read_dir(&blobs)?.count() == 0, "blobs of a removed image are left");
    ensure!(
        std::fs::read_dir(node.directory.path().join("root/images/layers"))?.count() == 0,
        "its layer is left"
    );
    node.finish(&[]).await
}

#[tokio::test]
async fn a_container_runs_to_its_end_and_its_output_is_logged() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("talker").await?;
    let script =
        "echo out; echo err >&2; hostname; cat /proc/1/comm; id -u; echo $HOSTNAME; printf end; exit 3";
    let id = pod.run(&node, pod.script("main", script)).await?;
    let status = ended(&node, &id).await?;
    ensure!(status.exit_code == 3 && status.reason == "Error", "{status:?}");
    ensure!(status.started_at > status.created_at && status.finished_at >= status.started_at, "{status:?}");
    let log = pod.log("main");
    let out: Vec<&str> = log.iter().filter_map(|l| l.strip_prefix("stdout ")).collect();
    ensure!(out == ["F out", "F talker", "F sh", "F 0", "F talker", "P end"], "{log:?}");
    ensure!(log.contains(&"stderr F err".to_owned()), "{log:?}");
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_start_error() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("typo").await?;
    let config = v1::ContainerConfig { command: vec!["/bin/nothing".into()], ..pod.script("main", "") };
    let id = pod.create(&node, config).await?;
    let request = v1::StartContainerRequest { container_id: id.clone() };
    let error = node.runtime().await?.start_container(request).await.expect_err("it started");
    ensure!(
        error.message().contains("exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory"),
        "{error}"
    );
    let status = status(&node, &id).await?;
    ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn containers_outlive_the_runtime_as_the_same_processes() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("survivor").await?;
    let script = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let long = pod.run(&node, pod.script("long", script)).await?;
    let short = pod
        .run(&node, pod.script("short", "while [ ! -e /tmp/end ]; do sleep 0.1; done; echo bye; exit 7"))
        .await?;
    let before = exec(&node, &long, "cat /proc/1/stat | cut -d' ' -f22; readlink /proc/1/ns/pid", 30).await?;
    exec(&node, &short, "(sleep 1; touch /tmp/end) >/dev/null 2>&1 &", 30).await?;
    node.restart().await?;
    let after = exec(&node, &long, "cat /proc/1/stat | cut -d' ' -f22; readlink /proc/1/ns/pid", 30).await?;
    ensure!(before.exit_code == 0 && before.stdout == after.stdout, "{before:?} {after:?}");
    let status = ended(&node, &short).await?;
    ensure!(status.exit_code == 7, "{status:?}");
    ensure!(pod.log("short") == ["stdout F bye"], "{:?}", pod.log("short"));
    let mut runtime = node.runtime().await?;
    runtime.stop_container(v1::StopContainerRequest { container_id: long.clone(), timeout: 30 }).await?;
    ensure!(crate::test_runtime::status(&node, &long).await?.exit_code == 0);
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn exec_returns_output_exit_code_and_timeouts() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("host").await?;
    let id = pod.run(&node, pod.script("main", "exec /bin/sleeper")).await?;
    let answer = exec(&node, &id, "echo out; echo err >&2; exit 5", 30).await?;
    ensure!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code) == (b"out\n", b"err\n", 5),
        "{answer:?}"
    );
    let large = exec(&node, &id, "head -c 3000000 /dev/zero", 30).await?;
    ensure!(large.stdout.len() == 3_000_000 && large.exit_code == 0);
    let start = Instant::now();
    let error = exec(&node, &id, "sleep 100", 1).await.expect_err("no timeout");
    ensure!(
        error.code() == tonic::Code::DeadlineExceeded && start.elapsed() < Duration::from_secs(30),
        "{error}"
    );
    let left = exec(&node, &id, "while pgrep -f 'sleep 100' >/dev/null; do sleep 0.1; done", 30).await?;
    ensure!(left.exit_code == 0, "the command outlives its timeout");
    let request = v1::ExecSyncRequest { container_id: id.clone(), cmd: vec!["nothing".into()], timeout: 30 };
    let error = node.runtime().await?.exec_sync(request).await.expect_err("it ran");
    ensure!(error.message().contains("exec: \"nothing\": executable file not found in $PATH"), "{error}");
    for (program, reason) in [
        ("/no/such/program", "stat /no/such/program: no such file or directory"),
        ("/etc/hosts", "permission denied"),
        ("/tmp", "is a directory"),
    ] {
        let cmd = vec![program.to_owned()];
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 30 };
        let error = node.runtime().await?.exec_sync(request).await.expect_err("it ran");
        ensure!(error.message().contains(&format!("exec: \"{program}\": {reason}")), "{error}");
    }
    let wrong = "echo '#!/no/such/shell' >/tmp/script; echo text >/tmp/text; chmod +x /tmp/script /tmp/text";
    ensure!(exec(&node, &id, wrong, 30).await?.exit_code == 0);
    for (program, reason) in
        [("/tmp/script", "no such file or directory"), ("/tmp/text", "exec format error")]
    {
        let cmd = vec![program.to_owned()];
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 30 };
        let error = node.runtime().await?.exec_sync(request).await.expect_err("it ran");
        ensure!(error.message().contains(&format!("exec {program}: {reason}")), "{error}");
    }
    ensure!(status(&node, &id).await?.state() == v1::ContainerState::ContainerRunning);
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn stop_gives_the_grace_period_and_then_kills() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("stubborn").await?;
    let polite = pod
        .run(
            &node,
            pod.script("polite", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done"),
        )
        .await?;
    let deaf = pod.run(&node, pod.script("deaf", "trap '' TERM; echo up; while :; do sleep 1; done")).await?;
    until("both are up", || pod.log("polite") == ["stdout F up"] && pod.log("deaf") == ["stdout F up"])
        .await?;
    let mut runtime = node.runtime().await?;
    runtime.stop_container(v1::StopContainerRequest { container_id: polite.clone(), timeout: 50 }).await?;
    ensure!(
        status(&node, &polite).await?.exit_code == 4 && pod.log("polite") == ["stdout F up", "stdout F bye"]
    );
    let start = Instant::now();
    runtime.stop_container(v1::StopContainerRequest { container_id: deaf.clone(), timeout: 1 }).await?;
    let status = status(&node, &deaf).await?;
    ensure!(status.exit_code == 137 && start.elapsed() >= Duration::from_secs(1), "{status:?}");
    node.finish(&[&pod]).await
}

/// A pod may be deleted at any moment while it starts.
#[tokio::test]
async fn a_pod_that_is_stopped_while_a_container_starts_leaves_nothing() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let mut pods = Vec::new();
    for step in 0..16 {
        let pod = node.run_pod(&format!("hasty-{step}")).await?;
        let id = pod.create(&node, pod.script("main", "trap '' TERM; while :; do sleep 1; done")).await?;
        let (mut starter, mut stopper) = (node.runtime().await?, node.runtime().await?);
        let start = starter.start_container(v1::StartContainerRequest { container_id: id });
        let stop = async {
            // The pauses cover all phases of a start, which takes some 50 ms.
            tokio::time::sleep(Duration::from_millis(5 * step)).await;
            stopper.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await
        };
        // The start may succeed or fail, depending on whether it was first.
        let (_, stopped) = tokio::join!(start, stop);
        stopped.with_context(|| format!("stopped {} ms into the start", 5 * step))?;
        pods.push(pod);
    }
    node.finish(&pods.iter().collect::<Vec<_>>()).await
}

#[tokio::test]
async fn a_container_over_its_memory_limit_is_oom_killed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("hungry").await?;
    let mut config = pod.script("main", "exec tail /dev/zero");
    if let Some(linux) = &mut config.linux {
        let limit = 32 << 20;
        linux.resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            cpu_shares: 102,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            oom_score_adj: -997,
            ..Default::default()
        });
    }
    let id = pod.run(&node, config).await?;
    let status = ended(&node, &id).await?;
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_ask_to_share() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let shared = v1::NamespaceOption { pid: v1::NamespaceMode::Pod.into(), ..Default::default() };
    let pod = node.run_pod_with("family", shared).await?;
    let first =
        pod.run(&node, pod.script("first", "touch /dev/shm/here; echo ready; exec /bin/sleeper")).await?;
    until("the first is ready", || pod.log("first") == ["stdout F ready"]).await?;
    let second = pod.run(&node, pod.script("second", "exec /bin/sleeper")).await?;
    let look = "for n in pid net ipc uts; do readlink /proc/self/ns/$n; done; ls /dev/shm; cat /proc/1/comm";
    let (a, b) = (exec(&node, &first, look, 30).await?, exec(&node, &second, look, 30).await?);
    let text = String::from_utf8_lossy(&a.stdout).into_owned();
    ensure!(a.stdout == b.stdout && text.contains("here") && !text.ends_with("sh\n"), "{text} {b:?}");
    let mounts = "readlink /proc/self/ns/mnt";
    ensure!(exec_line(&node, &first, mounts).await? != exec_line(&node, &second, mounts).await?);
    node.finish(&[&pod]).await
}

async fn exec_line(node: &TestRuntime, id: &str, script: &str) -> Result<String> {
    let answer = exec(node, id, script, 30).await?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

#[tokio::test]
async fn a_security_context_is_obeyed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("guarded").await?;
    let script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapPrm|CapBnd' /proc/self/status; touch /x; echo $?; \
                  echo hi > /dev/stdout; cat /data/f; touch /data/g; pwd; nslookup -h 2>/dev/null; ls /proc/acpi";
    let mut config = pod.script("main", script);
    let volume = node.directory.path().join("volume");
    std::fs::create_dir_all(&volume)?;
    std::fs::write(volume.join("f"), "data\n")?;
    config.mounts = vec![v1::Mount {
        container_path: "/data".into(),
        host_path: volume.to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    }];
    config.working_dir = "/made/here".into();
    if let Some(context) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        context.run_as_group = Some(v1::Int64Value { value: 3000 });
        context.supplemental_groups = vec![4000];
        context.readonly_rootfs = true;
        context.no_new_privs = true;
        context.capabilities =
            Some(v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    }
    let id = pod.run(&node, config).await?;
    ended(&node, &id).await?;
    let out: Vec<String> =
        pod.log("main").iter().filter_map(|l| l.strip_prefix("stdout F ")).map(str::to_owned).collect();
    ensure!(out[..3] == ["1000", "3000", "3000 4000"], "{out:?}");
    ensure!(
        out.contains(&"CapBnd:\t0000000000000000".into()) && out.contains(&"NoNewPrivs:\t1".into()),
        "{out:?}"
    );
    ensure!(
        out.contains(&"1".into()) && out.contains(&"hi".into()) && out.contains(&"data".into()),
        "{out:?}"
    );
    ensure!(out.contains(&"/made/here".into()), "{out:?}");
    ensure!(!volume.join("g").exists(), "a read-only volume was written");
    let user = status(&node, &id).await?.user.and_then(|u| u.linux).context("no user")?;
    ensure!((user.uid, user.gid, user.supplemental_groups) == (1000, 3000, vec![3000, 4000]));
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn reap_takes_down_what_a_crash_left() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("orphan").await?;
    pod.run(&node, pod.script("main", "exec /bin/sleeper")).await?;
    node.clean_up()
}
