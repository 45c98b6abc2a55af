//! Tests that a container cannot attack its node. Needs root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1;
use k8s_cri::v1::security_profile::ProfileType;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};

use crate::test_runtime::{TestRuntime, ended, exec, is_root};

/// Returns devices that the host's root can open and no container may, as arguments of mknod. The disk with
/// the host's files comes first, if even root can open it on this machine.
fn devices(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let disk = std::fs::metadata("/")?.dev();
    let disk = (SFlag::S_IFBLK, major(disk), minor(disk));
    // The disk, a loop device, FUSE and the kernel's log.
    for (kind, major, minor) in
        [disk, (SFlag::S_IFBLK, 7, 0), (SFlag::S_IFCHR, 10, 229), (SFlag::S_IFCHR, 1, 11)]
    {
        let node = directory.join("node");
        mknod(&node, kind, Mode::S_IRUSR, makedev(major, minor))?;
        if std::fs::File::open(&node).is_ok() {
            let letter = if kind == SFlag::S_IFBLK { "b" } else { "c" };
            found.push(format!("{letter} {major} {minor}"));
        }
        std::fs::remove_file(&node)?;
    }
    ensure!(!found.is_empty(), "root can open no device here");
    Ok(found)
}

fn context(config: &mut v1::ContainerConfig) -> Result<&mut v1::LinuxContainerSecurityContext> {
    config.linux.as_mut().and_then(|l| l.security_context.as_mut()).context("no security context")
}

fn lines(log: Vec<String>) -> Vec<String> {
    log.iter().filter_map(|l| l.strip_prefix("stdout F ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_container_makes_nodes_of_the_hosts_devices_and_cannot_open_them() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("thief").await?;
    let devices = devices(node.directory.path())?;
    let script = format!(
        "for device in '{}'; do for d in / /dev /data; do
           mknod $d/stolen $device || echo no node in $d
           (: <$d/stolen) 2>/dev/null && echo \"opened $device in $d\"; rm $d/stolen
         done; done
         (: </dev/zero) && echo zero; echo end",
        devices.join("' '")
    );
    let volume = node.directory.path().join("volume");
    std::fs::create_dir_all(&volume)?;
    for (name, privileged) in [("plain", false), ("privileged", true)] {
        let mut config = pod.script(name, &script);
        config.mounts = vec![v1::Mount {
            container_path: "/data".into(),
            host_path: volume.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        context(&mut config)?.privileged = privileged;
        let id = pod.run(&node, config).await?;
        ended(&node, &id).await?;
        let out = lines(pod.log(name));
        let mut expected: Vec<String> = match privileged {
            false => Vec::new(),
            // Its device rules allow everything, but its root file system is mounted without devices.
            true => devices
                .iter()
                .flat_map(|device| ["/dev", "/data"].map(|d| format!("opened {device} in {d}")))
                .collect(),
        };
        expected.extend(["zero".to_owned(), "end".to_owned()]);
        ensure!(out == expected, "{name}: {:?}", pod.log(name));
    }
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn a_root_file_system_takes_no_devices_also_read_only() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("nodev").await?;
    for (name, readonly) in [("writable", false), ("readonly", true)] {
        let mut config = pod.script(name, "awk '$5 == \"/\" { print $6 }' /proc/self/mountinfo");
        context(&mut config)?.readonly_rootfs = readonly;
        let id = pod.run(&node, config).await?;
        ended(&node, &id).await?;
        let out = lines(pod.log(name));
        ensure!(out.len() == 1 && out[0].split(',').any(|option| option == "nodev"), "{name}: {out:?}");
    }
    node.finish(&[&pod]).await
}

fn profile(kind: ProfileType) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), ..Default::default() })
}

#[tokio::test]
async fn a_container_runs_under_the_default_filter_unless_it_asks_for_none() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("filtered").await?;
    let look = "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo unshared; \
                grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    type Change = fn(&mut v1::LinuxContainerSecurityContext);
    let cases: [(&str, Change, bool); 5] = [
        ("unset", |_| {}, true),
        ("default", |c| c.seccomp = profile(ProfileType::RuntimeDefault), true),
        ("user", |c| (c.run_as_user, c.no_new_privs) = (Some(v1::Int64Value { value: 1000 }), true), true),
        ("unconfined", |c| c.seccomp = profile(ProfileType::Unconfined), false),
        ("privileged", |c| c.privileged = true, false),
    ];
    for (name, change, filtered) in cases {
        let mut config = pod.script(name, &format!("{look}; exec /bin/sleeper"));
        change(context(&mut config)?);
        let id = pod.run(&node, config).await?;
        // Processes started in the container later have the same filter and capabilities.
        let answer = exec(&node, &id, look, 30).await?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(text.contains(if filtered { "Seccomp:\t2" } else { "Seccomp:\t0" }), "{name}: {text}");
        ensure!(text.contains("unshared") != filtered, "{name}: {text}");
        crate::test_runtime::until("it has looked", || lines(pod.log(name)).len() == text.lines().count())
            .await?;
        ensure!(lines(pod.log(name)).join("\n") == text.trim_end(), "{name}: {text} {:?}", pod.log(name));
        let capabilities = text.lines().find_map(|l| l.strip_prefix("CapEff:\t")).unwrap_or_default();
        let expected = match name {
            "user" => Some("0000000000000000"),
            "privileged" => None,
            _ => Some("00000000a80425fb"),
        };
        ensure!(expected.is_none_or(|e| e == capabilities), "{name}: {text}");
    }
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn a_container_runs_under_a_filter_from_a_file_of_the_node() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("local").await?;
    let file = node.directory.path().join("no-directories.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17}]}"#;
    std::fs::write(&file, rules)?;
    let local = |path: &Path| v1::SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: path.to_string_lossy().into_owned(),
    };
    let look = "grep Seccomp: /proc/self/status; mkdir /tmp/made 2>&1";
    let mut config = pod.script("main", &format!("{look}; exec /bin/sleeper"));
    context(&mut config)?.seccomp = Some(local(&file));
    context(&mut config)?.run_as_user = Some(v1::Int64Value { value: 1000 });
    let id = pod.run(&node, config).await?;
    let answer = exec(&node, &id, look, 30).await?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    ensure!(text.contains("Seccomp:\t2") && text.contains("File exists"), "{text}");
    crate::test_runtime::until("it has looked", || lines(pod.log("main")).join("\n") == text.trim_end())
        .await?;

    let mut config = pod.script("missing", "true");
    context(&mut config)?.seccomp = Some(local(&node.directory.path().join("missing.json")));
    let error = pod.create(&node, config).await.expect_err("a profile that is not there");
    ensure!(format!("{error:#}").contains("cannot load seccomp profile"), "{error:#}");
    node.finish(&[&pod]).await
}

/// Adds to `wrong` each file below `directory` that other users than root may read. Skips the content of
/// images and pods, whose modes are their own.
fn check_modes(directory: &Path, wrong: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (name, found) = (entry.file_name(), entry.path().symlink_metadata()?);
        let theirs = ["fs", "upper", "rootfs", "shm", "volumes", "hosts", "hostname", "resolv.conf"];
        if theirs.iter().any(|n| name == *n) || found.is_symlink() {
            continue;
        }
        if found.permissions().mode() & 0o077 != 0 && !entry.path().ends_with("ns/net") {
            wrong.push(format!("{:o} {}", found.permissions().mode() & 0o7777, entry.path().display()));
        }
        if found.is_dir() {
            check_modes(&entry.path(), wrong)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn nobody_but_root_reads_what_the_runtime_keeps() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("secret").await?;
    let mut config = pod.script("main", "exec /bin/sleeper");
    config.envs = vec![v1::KeyValue { key: "PASSWORD".into(), value: "hunter2".into() }];
    // An unprivileged user must be able to use the root file system.
    context(&mut config)?.run_as_user = Some(v1::Int64Value { value: 1000 });
    let id = pod.run(&node, config).await?;
    let answer = exec(&node, &id, "echo $PASSWORD; cat /etc/hosts >/dev/null && echo hosts", 30).await?;
    ensure!(answer.stdout == b"hunter2\nhosts\n", "{answer:?}");
    let mut wrong = Vec::new();
    for part in ["root", "state"] {
        let directory = node.directory.path().join(part);
        ensure!(directory.metadata()?.permissions().mode() & 0o777 == 0o700, "{part}");
        check_modes(&directory, &mut wrong)?;
    }
    // Namespaces held by bind mounts have modes set by the kernel.
    wrong.retain(|w| !w.contains("/ns/"));
    ensure!(wrong.is_empty(), "others may read: {wrong:#?}");
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn a_user_that_the_image_does_not_know_is_an_error_of_creation() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("ghost").await?;
    let mut config = pod.script("main", "true");
    context(&mut config)?.run_as_username = "ghost".into();
    let error = pod.create(&node, config).await.expect_err("a container of nobody");
    ensure!(format!("{error:#}").contains("unable to find user ghost"), "{error:#}");
    node.finish(&[&pod]).await
}
