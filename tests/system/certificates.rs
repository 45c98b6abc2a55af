//! Certificates with a lifetime of seconds: a cluster renews all of them while it serves and fails over, and
//! starts again by itself after it was off until long after their expiry. Also: a master that has lost its
//! data does not create a new cluster.
//!
//! `EPHOR_CERTIFICATE_LIFETIME=5m EPHOR_CERTIFICATE_RUN=60m` runs the test for an hour; the units are `s` and
//! `m`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tests::hosts::run;
use tests::load::{Writer, check_writes};
use tests::{Cluster, How, duration, eventually, eventually_within, says};

const WRITE_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time without an acknowledged write: an election on a busy machine, and the clients' search for the
/// new leader.
const LONGEST_GAP: Duration = Duration::from_secs(5);
const METRIC: &str = "ephor_certificate_expiration_timestamp_seconds";
const MASTERS: [&str; 3] = ["m1", "m2", "m3"];
const NODES: [&str; 4] = ["m1", "m2", "m3", "w1"];

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_under_load_and_after_a_year_off() -> Result<()> {
    let lifetime = duration("EPHOR_CERTIFICATE_LIFETIME", Duration::from_secs(18))?;
    let time = duration("EPHOR_CERTIFICATE_RUN", Duration::from_secs(30))?;
    let flag = format!("{}s", lifetime.as_secs());
    let cluster = Cluster::up_with(3, 1, &["--certificate-lifetime", &flag]).await?;
    let began = Instant::now();
    let first = expirations(&cluster).await?;
    let longer_than_the_test = format!("{}s", (time * 2).as_secs().max(3600));
    let token = cluster.kubectl(&["create", "token", "default", "--duration", &longer_than_the_test])?;
    let token = token.trim();
    let first_keys = published_keys(&cluster).await?;
    let writer = Writer::start(cluster.client(), WRITE_INTERVAL);
    let mut round = 0;
    while began.elapsed() < time {
        round += 1;
        // The times of faults are independent of those of renewals.
        let until = began + (lifetime * round * 2 / 3).min(time);
        tokio::time::sleep_until(until.into()).await;
        let leader = cluster.leader().await?;
        cluster.stop(&leader, How::Kill)?;
        if round.is_multiple_of(2) {
            cluster.stop("w1", How::Kill)?;
            cluster.start("w1")?;
        }
        cluster.start(&leader)?;
        cluster.masters_agree().await?;
    }
    runs_a_pod(&cluster, "late").await?;
    let last = expirations(&cluster).await?;
    // At least one rotation is behind it; a token of the first key is good at every master still.
    let keys = published_keys(&cluster).await?;
    ensure!(
        keys.len() > first_keys.len() && keys.starts_with(&first_keys[..1]),
        "{first_keys:?}, then {keys:?}"
    );
    for master in MASTERS {
        let server = format!("https://{}:6443", cluster.address(master)?);
        let mut kubectl = cluster.kubectl_command()?;
        // Beside the kubeconfig's certificate a token would count for nothing.
        kubectl.env("KUBECONFIG", "/dev/null").args(["--server", &server, "--token", token]);
        kubectl.arg("--certificate-authority").arg(cluster.data_dir("w1").join("pki/ca.crt"));
        let who = run(kubectl.args(["auth", "whoami"]))?;
        says(&who, &["system:serviceaccount:default:default"])?;
    }
    for (certificate, end) in &first {
        let renewed = last[certificate] > *end;
        ensure!(renewed != certificate.ends_with(" ca"), "{certificate} ends at {end}, then at {last:?}");
    }
    let (writes, rate) = writer.finish().await?;
    let mut answers: Vec<Instant> = writes.acknowledged.values().map(|(_, answered)| *answered).collect();
    answers.sort_unstable();
    let gap = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    println!(
        "{} writes at {rate:.0}/s, {} failed, {round} kills of the leader; longest time without one: {gap:?}",
        writes.sent, writes.failed
    );
    ensure!(gap < LONGEST_GAP, "no write was acknowledged for {gap:?}");
    check_writes(cluster.client(), &writes).await?;
    says(&cluster.log("w1")?, &["the certificates of this node were renewed"])?;
    starts_a_year_later(&cluster).await?;
    cluster.passed()
}

/// Reads from each master's metrics when each of its certificates expires.
async fn expirations(cluster: &Cluster) -> Result<BTreeMap<String, f64>> {
    let mut found = BTreeMap::new();
    for master in MASTERS {
        let client = cluster.client_of(master).await?;
        let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        for line in text.lines().filter(|line| line.starts_with(METRIC)) {
            let (labels, value) = line.rsplit_once(' ').context("a metric without a value")?;
            let name = labels.split('"').nth(1).context("a metric without its label")?;
            found.insert(format!("{master} {name}"), value.parse()?);
        }
    }
    let metrics = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/w1/proxy/metrics"])?;
    for line in metrics.lines().filter(|line| line.starts_with(METRIC)) {
        let (labels, value) = line.rsplit_once(' ').context("a metric without a value")?;
        let name = labels.split('"').nth(1).context("a metric without its label")?;
        found.insert(format!("w1 {name}"), value.parse()?);
    }
    says(
        &metrics,
        &["# TYPE ephor_task_panics_total counter", "# TYPE ephor_undecodable_objects_total counter"],
    )?;
    ensure!(found.len() == 5 * MASTERS.len() + 2, "{found:?}");
    let masters = ["certificates (m1) end: ca ", "apiserver ", "service-account-key "];
    eventually("the end of all certificates in the status", async || {
        let status = cluster.ephor(&["status"])?;
        let nodes = ["certificates (node w1) end: client "];
        Ok(says(&status, &masters).and_then(|()| says(&status, &nodes)).is_ok().then_some(()))
    })
    .await?;
    Ok(found)
}

/// Returns the ids of the keys that verify ServiceAccount tokens, oldest first.
async fn published_keys(cluster: &Cluster) -> Result<Vec<String>> {
    let text = cluster.kubectl(&["get", "--raw", "/openid/v1/jwks"])?;
    let jwks: serde_json::Value = serde_json::from_str(&text)?;
    let keys = jwks["keys"].as_array().context("no keys")?.iter();
    keys.map(|key| Ok(key["kid"].as_str().context("a key without an id")?.to_owned())).collect()
}

/// Checks that a new pod runs and its log can be read through the API, which needs three certificates: the
/// agent's client and serving certificates, and the API server's client certificate for nodes.
async fn runs_a_pod(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.create_sleeper(name).await?;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    eventually("the new pod to run", async || {
        let phase = pods.get(name).await?.status.and_then(|s| s.phase);
        Ok((phase.as_deref() == Some("Running")).then_some(()))
    })
    .await?;
    cluster.kubectl(&["logs", name]).map(drop)
}

/// Stops everything and starts it more than a year later, when every certificate but the CA has expired.
async fn starts_a_year_later(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        cluster.stop(node, How::Kill)?;
    }
    let before = cluster.log("w1")?.matches("the certificates of this node were renewed").count();
    let library = faketime()?;
    let later = |arguments: &[&str]| -> Result<String> {
        let mut command = cluster.ephor_command(arguments);
        // Only the wall clock is faked; child processes inherit it.
        command.env("LD_PRELOAD", &library);
        command.env("FAKETIME", "+400d").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        run(&mut command)
    };
    for node in NODES {
        later(&["dev", "start", node])?;
    }
    let data = cluster.data_dir("m1").to_string_lossy().into_owned();
    let kubeconfig = cluster.root().join("kubeconfig-later").to_string_lossy().into_owned();
    let server = format!("https://{}:6443", cluster.address("m1")?);
    later(&["kubeconfig", "--data-dir", &data, "--server", &server, "-o", &kubeconfig])?;
    eventually("all masters with one digest, a year later", async || {
        let status = later(&["status", "--digest", "--kubeconfig", &kubeconfig])?;
        Ok((status.matches(" digest ").count() == MASTERS.len()).then_some(()))
    })
    .await?;
    later(&["token", "create", "--kubeconfig", &kubeconfig]).context("a write")?;
    // The worker renews with a certificate that expired long ago.
    eventually("the worker's new certificates", async || {
        let now = cluster.log("w1")?.matches("the certificates of this node were renewed").count();
        Ok((now > before).then_some(()))
    })
    .await?;
    for node in NODES {
        cluster.stop(node, How::Kill)?;
    }
    Ok(())
}

/// Finds the library of Debian's `faketime` for this architecture.
fn faketime() -> Result<PathBuf> {
    let places =
        std::fs::read_dir("/usr/lib")?.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
    places.into_iter().find(|path| path.exists()).context("faketime is not installed: run ops/test")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_its_data_creates_no_cluster_and_says_how_to_come_back() -> Result<()> {
    let cluster = Cluster::up(3, 1).await?;
    let id = |list: &str| -> Option<String> {
        let line = list.lines().find(|line| line.split_whitespace().nth(1) == Some("m1"))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    let old = id(&cluster.ephor(&["members"])?).context("m1 is no member")?;
    for node in ["m1", "w1"] {
        cluster.stop(node, How::Kill)?;
        std::fs::remove_dir_all(cluster.data_dir(node))?;
        let refused = cluster.start(node).err().context("it was started without data")?;
        says(&format!("{refused:#}"), &["has lost its data", &format!("ephor dev start {node} --rejoin")])?;
    }
    // The command that a systemd unit runs at every start.
    let data = cluster.data_dir("m1").to_string_lossy().into_owned();
    let daily = ["master", "--name", "m1", "--advertise-address", "127.0.0.1", "--data-dir", &data];
    let refused = cluster.ephor(&daily).err().context("an empty directory was started")?;
    says(&format!("{refused:#}"), &["is empty", "ephor members replace m1", "--init"])?;
    ensure!(!cluster.data_dir("m1").exists(), "something was made of nothing");

    for node in ["m1", "w1"] {
        eventually("the node to join again", async || {
            cluster.ephor(&["dev", "start", node, "--rejoin"]).map(Some)
        })
        .await?;
    }
    eventually_within(Duration::from_secs(30), "m1 to vote under another id", async || {
        let list = cluster.ephor(&["members"])?;
        let voters =
            list.lines().filter(|line| line.ends_with(" voter") || line.ends_with(" leader")).count();
        Ok((voters == 3 && id(&list).is_some_and(|new| new != old)).then_some(()))
    })
    .await?;
    cluster.nodes_ready(1).await?;
    cluster.masters_agree().await?;
    cluster.passed()
}

/// Checks that a node's certificate proves only that node's identity: not another node's, and not that of a
/// server that API clients trust.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_s_certificates_are_good_for_nothing_else() -> Result<()> {
    let cluster = Cluster::up(1, 1).await?;
    let pki = cluster.data_dir("w1").join("pki");
    let ca = pki.join("ca.crt");
    let verify = |file: &str, purpose: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-purpose", purpose, "-CAfile"]).arg(&ca).arg(pki.join(file));
        run(&mut openssl)
    };
    verify("client.pem", "sslclient")?;
    verify("serving.pem", "sslserver").err().context("the cluster's CA vouches for a node's server")?;
    let names = run(Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
        .arg(pki.join("client.pem")))?;
    ensure!(!names.contains("DNS:"), "{names}");
    cluster.passed()
}
