//! Masters protect themselves: a replica that differs from the others stops serving and takes over the
//! leader's state; a full disk stops one master cleanly, which comes back by itself once there is room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tests::load::{Writer, check_writes};
use tests::{Cluster, How, eventually, says};

const DISK_BYTES: u64 = 96 << 20;

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// Returns the path of the tool built beside this test: target/PROFILE/deps/defence-... -> target/PROFILE.
fn diverge_tool() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(Path::parent).context("a test lies in target")?;
    Ok(directory.join("ephor-diverge"))
}

async fn get(client: &Client, path: &str) -> Result<String> {
    Ok(client.request_text(http::Request::get(path).body(Vec::new())?).await?)
}

/// Returns the output of `ephor status`, which fails while there are alarms.
fn status(cluster: &Cluster) -> String {
    cluster.ephor(&["status"]).unwrap_or_else(|error| format!("{error:#}"))
}

async fn value(client: &Client) -> Result<String> {
    let map = Api::<ConfigMap>::default_namespaced(client.clone()).get("planted").await?;
    map.data.and_then(|data| data.get("value").cloned()).context("no value")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_taken_out_and_made_anew() -> Result<()> {
    let cluster = Cluster::up(3, 0).await?;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": { "name": "planted" }, "data": { "value": "original" }
    }))?;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    maps.create(&PostParams::default(), &map).await?;
    cluster.masters_agree().await?;
    let leader = cluster.leader().await?;
    let victim = ["m1", "m2", "m3"].into_iter().find(|name| **name != leader).context("a follower")?;
    // The master is stopped cleanly: after a kill its objects would be older than its log, which would repair
    // them.
    cluster.ephor(&["dev", "stop", victim])?;
    let mut tool = Command::new(diverge_tool()?);
    run(tool.arg(cluster.data_dir(victim)).args(["/configmaps/default/planted", "original", "tampered"]))?;
    let started = Instant::now();
    cluster.start(victim)?;
    let direct = cluster.client_of(victim).await?;
    // Checked in the log, because the state in `ephor status` and `/readyz` may last only a few tenths of a
    // second.
    eventually("the replica to notice that it differs", async || {
        says(&cluster.log(victim)?, &["this replica differs from the majority"]).map(Some)
    })
    .await?;
    let noticed = started.elapsed();
    eventually("the replica to be as the others", async || {
        get(&direct, "/readyz").await?;
        ensure!(value(&direct).await? == "original", "it still serves what was planted");
        Ok(Some(()))
    })
    .await?;
    println!("noticed {noticed:?} after the start, right again {:?} after it", started.elapsed());
    cluster.masters_agree().await?;
    says(&cluster.log(victim)?, &["the leader's state has taken the place of this one"])?;
    ensure!(!status(&cluster).contains("ALARM"), "the alarm stays:\n{}", status(&cluster));
    cluster.passed()
}

/// A small file system for one master's data, and the file that fills it. It must be unmounted before the
/// cluster is dropped, which removes the directory.
struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    fn mount(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let options = format!("size={DISK_BYTES}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&directory))?;
        Ok(Self { directory })
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    fn free(&self) -> Result<u64> {
        let text = run(Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&self.directory))?;
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok(numbers.iter().product())
    }

    /// Fills the file system except for `left` bytes.
    fn fill(&self, left: u64) -> Result<()> {
        if left == 0 {
            // The master is writing at the same time: dd takes whatever is left.
            let mut write = Command::new("dd");
            write.args(["if=/dev/zero", "bs=64k", "oflag=append", "conv=notrunc", "status=none"]);
            let ended = write.arg(format!("of={}", self.ballast().display())).output()?;
            ensure!(!ended.status.success(), "the disk took everything");
            return Ok(());
        }
        let mut taken = std::fs::metadata(self.ballast()).map_or(0, |file| file.len());
        taken += self.free()?.saturating_sub(left);
        run(Command::new("fallocate").args(["-l", &taken.to_string()]).arg(self.ballast())).map(drop)
    }

    fn clear(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.directory)) {
            eprintln!("unmounting: {error:#}");
        }
    }
}

/// Cluster and disk of the test; fields are dropped in this order.
struct Place {
    disk: SmallDisk,
    cluster: Cluster,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_one_master_cleanly_and_room_brings_it_back() -> Result<()> {
    let mut disk = None;
    let cluster = Cluster::up_prepared(3, 0, &[], |nodes| {
        disk = Some(SmallDisk::mount(nodes.join("m3"))?);
        Ok(())
    });
    let cluster = cluster.await?;
    let place = Place { disk: disk.context("mounted")?, cluster };
    let Place { disk, cluster } = &place;
    let members = cluster.ephor(&["members"])?;
    let line = members.lines().find(|line| line.contains(" m3 ")).context("m3 is a member")?;
    let id = line.split_whitespace().next().context("an id")?;
    cluster.ephor(&["members", "transfer-leader", id])?;
    let writer = Writer::start(cluster.client(), Duration::from_millis(50));

    // Nearly full: there is an alarm, and another master leads.
    disk.fill(3 << 20)?;
    eventually("another master to lead", async || Ok((cluster.leader().await? != "m3").then_some(())))
        .await?;
    eventually("the alarm", async || says(&status(cluster), &["ALARM m3 no-space"]).map(Some)).await?;
    let metrics = get(&cluster.client_of("m3").await?, "/metrics").await?;
    says(&metrics, &["ephor_alarm{alarm=\"no-space\"} 1", "ephor_alarm{alarm=\"diverged\"} 0"])?;
    says(&metrics, &["ephor_log_bytes ", "ephor_object_store_bytes ", "ephor_disk_free_bytes "])?;

    // Full: the master ends and logs why; the cluster goes on.
    disk.fill(0)?;
    eventually("m3 to stop", async || {
        says(&cluster.log("m3")?, &["this master has stopped and starts again once"]).map(Some)
    })
    .await?;
    eventually("its last alarm at the others", async || {
        let text = status(cluster);
        let line = text.lines().find(|line| line.starts_with("m3 ")).context("m3 has a line")?;
        ensure!(line.split_whitespace().nth(1) == Some("-"), "it still answers: {line}");
        says(&text, &["ALARM m3 no-space"]).map(Some)
    })
    .await?;
    let full = Instant::now();
    eventually("writes without m3", async || Ok(writer.first_sent_after(full))).await?;
    ensure!(!cluster.log("m3")?.contains("panicked"), "it panicked");

    // Room again: the master comes back by itself.
    disk.clear()?;
    let freed = Instant::now();
    cluster.masters_agree().await?;
    println!("back {:?} after there was room", freed.elapsed());
    eventually("no alarm", async || Ok((!status(cluster).contains("ALARM")).then_some(()))).await?;

    // A master started on a full disk says so, does no harm, and waits.
    cluster.stop("m3", How::Kill)?;
    disk.fill(0)?;
    cluster.start("m3")?;
    eventually("m3 to say what it needs", async || {
        says(&cluster.log("m3")?, &["MiB free, at least 2 are needed to start: free some space"]).map(Some)
    })
    .await?;
    disk.clear()?;
    cluster.masters_agree().await?;
    let (writes, _) = writer.finish().await?;
    ensure!(writes.acknowledged.len() > 20, "{} writes were acknowledged", writes.acknowledged.len());
    check_writes(cluster.client(), &writes).await?;
    cluster.masters_agree().await?;
    println!("{} of {} writes acknowledged, none lost", writes.acknowledged.len(), writes.sent);
    let Place { disk, cluster } = place;
    drop(disk);
    cluster.passed()
}
