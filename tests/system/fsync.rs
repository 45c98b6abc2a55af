//! Durability of the masters' files, observed with strace: every acknowledged write follows a sync of the log
//! on a quorum, and every removed log segment and adopted snapshot follows a sync of every file of the object
//! store. The tests also leave syncs out through strace, to show that they can fail.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tests::strace::{Event, Strace, now};
use tests::{Cluster, Hosts, eventually, eventually_within, octet};

const MASTERS: [&str; 3] = ["m1", "m2", "m3"];
const WRITES: usize = 60;
/// A small log, so that it is purged soon; strace slows the masters down.
const SMALL_LOG: &str = "--log-mib 8";
const LARGE_BYTES: usize = 200_000;
const LARGE_AT_ONCE: usize = 4;
const PURGE_WITHIN: std::time::Duration = std::time::Duration::from_secs(300);
const PREFIX: &str = "ephfsy";
const SUBNET: &str = "10.99.11";

/// Times at which a write was sent and acknowledged.
type Window = (u64, u64);

fn pid_of(cluster: &Cluster, node: &str) -> Result<u32> {
    let output = cluster.ephor(&["dev", "ps"])?;
    let line = output.lines().find(|line| line.split_whitespace().next() == Some(node));
    let pid = line.and_then(|line| line.split_whitespace().nth(3)).context("not running")?;
    Ok(pid.parse()?)
}

async fn attach(pid: u32, inject: Option<&str>) -> Result<Strace> {
    let output = std::env::temp_dir().join(format!("ephor-strace-{}-{pid}", std::process::id()));
    Strace::attach(pid, &output, inject).await
}

/// Writes one object after the other, so that each needs its own syncs.
async fn write(cluster: &Cluster, name: &str) -> Result<Vec<Window>> {
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let mut windows = Vec::new();
    for number in 0..WRITES {
        let object = serde_json::from_value(json!({ "metadata": { "name": format!("{name}-{number}") } }))?;
        let sent = now();
        // A refused write, as during an election, is not counted.
        if api.create(&PostParams::default(), &object).await.is_ok() {
            windows.push((sent, now()));
        }
    }
    ensure!(windows.len() > WRITES / 2, "only {} of {WRITES} writes were acknowledged", windows.len());
    Ok(windows)
}

/// Returns on how many masters a log was written and then synced within the window of a write.
fn synced_masters(traces: &[Vec<Event>], (sent, acknowledged): Window) -> usize {
    let synced = |trace: &&Vec<Event>| {
        let within = |event: &&Event| event.start >= sent && event.end <= acknowledged;
        let mut of_log = trace.iter().filter(within).filter(|event| event.path.contains("/log/log-"));
        let Some(written) = of_log.clone().find(|event| event.is_write()) else { return false };
        of_log.any(|sync| sync.is_sync() && sync.path == written.path && sync.start >= written.end)
    };
    traces.iter().filter(synced).count()
}

fn check_acknowledged(traces: &[Vec<Event>], windows: &[Window]) -> Result<()> {
    for window in windows {
        let masters = synced_masters(traces, *window);
        ensure!(
            masters * 2 > MASTERS.len(),
            "a write sent at {} was acknowledged at {} with its log synced on {masters} of {} masters",
            window.0,
            window.1,
            MASTERS.len()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_acknowledged_after_a_quorum_has_synced_its_log() -> Result<()> {
    let cluster = Cluster::up(3, 0).await?;
    for unsynced in [0, 2] {
        let mut straces = Vec::new();
        for (number, node) in MASTERS.into_iter().enumerate() {
            let inject = (number < unsynced).then_some("fdatasync,fsync:retval=0");
            let pid = eventually("the process", async || pid_of(&cluster, node).map(Some)).await?;
            straces.push(attach(pid, inject).await?);
        }
        let windows = write(&cluster, &format!("write-{unsynced}")).await?;
        let mut traces = Vec::new();
        for strace in straces {
            traces.push(strace.finish().await?);
        }
        let checked = check_acknowledged(&traces, &windows);
        match unsynced {
            0 => {
                checked?;
                let all = windows.iter().filter(|window| synced_masters(&traces, **window) == 3).count();
                println!(
                    "{} writes, each synced by a quorum before its answer, {all} by all three",
                    windows.len()
                );
            }
            _ => println!(
                "with {unsynced} masters that do not sync: {:#}",
                checked.err().context("unnoticed")?
            ),
        }
    }
    cluster.passed()
}

/// Overwrites a few large objects repeatedly until `done` returns true.
async fn fill(client: &Client, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut round = 0;
    let mut failed = String::new();
    let filled = eventually_within(PURGE_WITHIN, what, async || {
        let fill = ["a", "b", "c", "d"][round % 4].repeat(LARGE_BYTES);
        let writes = (0..LARGE_AT_ONCE).map(|number| {
            let name = format!("large-{number}");
            let object =
                json!({ "metadata": { "name": name }, "data": { "fill": fill, "round": round.to_string() } });
            let api = api.clone();
            async move {
                let object: ConfigMap = serde_json::from_value(object)?;
                match api.replace(&name, &PostParams::default(), &object).await {
                    Ok(_) => Ok(()),
                    Err(_) => api.create(&PostParams::default(), &object).await.map(drop).context("writing"),
                }
            }
        });
        for result in futures::future::join_all(writes).await {
            // Failures are expected during an election; the next round tries again.
            failed = result.err().map_or_else(String::new, |error| format!("{error:#}"));
        }
        round += 1;
        Ok(done()?.then_some(()))
    })
    .await;
    filled.with_context(|| {
        format!("after {round} rounds of {LARGE_AT_ONCE} large writes; last failure: {failed}")
    })
}

/// Returns the path of the first segment of a master's log.
fn first_segment(hosts: &Hosts, master: &str) -> Result<PathBuf> {
    let mut names = std::fs::read_dir(Path::new(&hosts.data_dir(master)).join("log"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    names.into_iter().next().context("a master without a log")
}

/// Checks that before `until` and after `since` the database was synced, together with its directory and
/// every file in it that had been written.
fn check_objects(trace: &[Event], since: u64, until: u64, what: &str) -> Result<()> {
    let of_objects = |event: &&Event| event.path.contains("/objects/state-");
    let syncs = || trace.iter().filter(|it| it.is_sync() && it.end <= until).filter(of_objects);
    let of_state = |path: &str| path.rsplit_once('/').is_some_and(|(_, name)| name.starts_with("state-"));
    let swept = syncs().rfind(|it| of_state(&it.path) && it.start >= since);
    let swept =
        swept.with_context(|| format!("{what}: the directory of the database was not synced before it"))?;
    // sled also syncs the file by itself: only the sync before that of the directory counts.
    let database = format!("{}/db", swept.path);
    let database = syncs().rfind(|it| it.path == database && it.start >= since && it.end <= swept.start);
    let database = database.with_context(|| format!("{what}: the database was not synced before it"))?;
    let mut files = 0;
    for written in trace.iter().filter(|it| it.is_write() && it.end <= database.start).filter(of_objects) {
        let synced = syncs().any(|it| it.path == written.path && it.start >= written.end);
        // A file that sled has deleted by then needs no sync.
        let gone = trace.iter().any(|it| {
            it.call.starts_with("unlink")
                && it.path == written.path
                && it.start >= written.end
                && it.end <= until
        });
        ensure!(synced || gone, "{what}: {} was written at {} and not synced", written.path, written.end);
        files += 1;
    }
    ensure!(files > 0, "{what}: nothing was written to the objects before it");
    Ok(())
}

/// Checks the removal of every segment; returns the number of removed segments.
fn check_purges(trace: &[Event]) -> Result<usize> {
    let mut removed = 0;
    for event in trace.iter().filter(|it| it.call.starts_with("unlink") && it.path.contains("/log/log-")) {
        // The content of a segment has been applied, at the latest, when the objects are synced.
        let since =
            trace.iter().rfind(|it| it.is_write() && it.path == event.path).map_or(0, |last| last.end);
        check_objects(trace, since, event.start, &format!("removing {}", event.path))?;
        removed += 1;
    }
    Ok(removed)
}

/// Checks every snapshot that became the current state; returns their number.
fn check_snapshots(trace: &[Event]) -> Result<usize> {
    let mut adopted = 0;
    for event in
        trace.iter().filter(|it| it.call.starts_with("rename") && it.path.ends_with("/objects/CURRENT"))
    {
        check_objects(trace, 0, event.start, "adopting a snapshot")?;
        adopted += 1;
    }
    Ok(adopted)
}

/// Traces `m1` and `m2` until both remove log segments, and checks the removals.
async fn purges(hosts: &Hosts, client: &Client) -> Result<()> {
    let straces = (attach(hosts.pid("m1")?, None).await?, attach(hosts.pid("m2")?, None).await?);
    let before = [first_segment(hosts, "m1")?, first_segment(hosts, "m2")?];
    fill(client, "both logs to be purged", || {
        Ok(first_segment(hosts, "m1")? != before[0] && first_segment(hosts, "m2")? != before[1])
    })
    .await?;
    let traces = [straces.0.finish().await?, straces.1.finish().await?];
    for (node, trace) in ["m1", "m2"].into_iter().zip(&traces) {
        let removed = check_purges(trace).with_context(|| node.to_owned())?;
        ensure!(removed > 0, "{node} removed no segment under strace");
        println!("{node}: {removed} segments removed, each after every file of the objects was synced");
        let unsynced: Vec<Event> =
            trace.iter().filter(|it| !(it.is_sync() && it.path.contains("/objects/"))).cloned().collect();
        match check_purges(&unsynced) {
            Err(error) => println!("{node} without these syncs: {error:#}"),
            Ok(_) => bail!("{node}: that nothing is synced goes unnoticed"),
        }
    }
    Ok(())
}

/// Checks the third master, which needs a snapshot because the others have purged their logs.
async fn adoption(hosts: &mut Hosts) -> Result<()> {
    let current = Path::new(&hosts.data_dir("m3")).join("objects/CURRENT");
    let old = std::fs::read_to_string(&current)?;
    hosts.start("m3", octet(3), SMALL_LOG)?;
    let strace = attach(hosts.pid("m3")?, None).await?;
    eventually_within(PURGE_WITHIN, "a snapshot to be adopted", async || {
        Ok((std::fs::read_to_string(&current)? != old).then_some(()))
    })
    .await?;
    // The master is killed first: while alive it would start threads as strace detaches.
    hosts.kill("m3")?;
    let adopted = check_snapshots(&strace.finish().await?)?;
    ensure!(adopted > 0, "no snapshot was adopted under strace");
    println!("m3: {adopted} snapshots adopted, each after every file of its state was synced");
    Ok(())
}

async fn purges_and_adoption(hosts: &mut Hosts) -> Result<()> {
    hosts.cluster(3, SMALL_LOG).await?;
    hosts.ephor("members transfer-leader m1")?;
    hosts.kill("m3")?;
    let client = hosts.client(octet(1)).await?;
    purges(hosts, &client).await?;
    adoption(hosts).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_purged_and_a_snapshot_adopted_after_every_file_of_the_objects_is_synced() -> Result<()> {
    Hosts::run(PREFIX, SUBNET, purges_and_adoption).await
}
