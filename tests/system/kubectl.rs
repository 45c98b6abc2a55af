//! The real kubectl against a real cluster: each verb is checked for what it
//! prints and for what it changes. One cluster for all, one test a group of
//! verbs, each in a namespace of its own.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Cluster, eventually, says};

/// The cluster of this file's tests, in which each test has its own namespace.
struct Bench {
    cluster: Cluster,
}

impl Bench {
    async fn new() -> Result<Self> {
        let cluster = Cluster::up(3, 2).await?;
        cluster.deploy_web().await?;
        Ok(Self { cluster })
    }

    fn kubectl(&self, line: &str) -> Result<String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.cluster.kubectl(&arguments)
    }

    /// Runs kubectl with a manifest on its standard input; returns output and exit code.
    fn fed(&self, line: &str, input: &str) -> Result<(String, i32)> {
        let mut command = self.cluster.kubectl_command()?;
        command
            .args(line.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let mut text = String::from_utf8(output.stdout)?;
        text += std::str::from_utf8(&output.stderr)?;
        Ok((text, output.status.code().unwrap_or(-1)))
    }

    fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("{line} -o json"))?)?)
    }

    fn one_pod(&self) -> Result<String> {
        let names = self.kubectl("get pods -l app=web -o jsonpath={.items[0].metadata.name}")?;
        ensure!(!names.is_empty(), "no pod");
        Ok(names)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_as_against_a_stock_cluster() -> Result<()> {
    let bench = Bench::new().await?;
    reading(&bench)?;
    discovery(&bench)?;
    changing(&bench)?;
    rollouts(&bench).await?;
    containers(&bench).await?;
    port_forward(&bench)?;
    waiting_and_events(&bench)?;
    dry_runs(&bench)?;
    lists(&bench)?;
    bench.cluster.passed()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_deletes_and_drains() -> Result<()> {
    let bench = Bench::new().await?;
    bench.kubectl("create configmap c --from-literal=edited=2")?;
    deleting(&bench)?;
    drain(&bench)?;
    bench.cluster.passed()
}

fn reading(bench: &Bench) -> Result<()> {
    let table = bench.kubectl("get deployment web")?;
    says(&table, &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "web", "3/3"])?;
    let wide = bench.kubectl("get pods -o wide")?;
    says(&wide, &["NOMINATED NODE", "READINESS GATES", "Running", "1/1", "10.42."])?;
    says(&bench.kubectl("get nodes -o wide")?, &["INTERNAL-IP", "CONTAINER-RUNTIME", "Ready", "w1", "w2"])?;
    says(
        &bench.kubectl("get deployment web -o yaml")?,
        &["apiVersion: apps/v1", "maxSurge: 25%", "revisionHistoryLimit: 10"],
    )?;
    ensure!(bench.json("get service web")?["spec"]["ports"][0]["nodePort"] == 30080);
    let described = bench.kubectl("describe deployment web")?;
    says(&described, &["RollingUpdateStrategy:", "25% max unavailable, 25% max surge", "ScalingReplicaSet"])?;
    let pod = bench.one_pod()?;
    says(
        &bench.kubectl(&format!("describe pod {pod}"))?,
        &["Node:", "QoS Class:", "Burstable", "Scheduled", "Started"],
    )?;
    says(&bench.kubectl("describe node w1")?, &["PodCIDR:", "Allocated resources:", "KubeletReady"])?;
    says(&bench.kubectl("describe service web")?, &["Endpoints:", "NodePort:"])?;
    says(&bench.kubectl("get all -A")?, &["service/kubernetes", "deployment.apps/web"])
}

fn discovery(bench: &Bench) -> Result<()> {
    says(
        &bench.kubectl("explain deployment.spec")?,
        &["KIND:       Deployment", "FIELDS:", "replicas", "<integer>"],
    )?;
    says(
        &bench.kubectl("api-resources")?,
        &["deployments", "deploy", "apps/v1", "configmaps", "cm", "leases"],
    )?;
    says(&bench.kubectl("api-versions")?, &["apps/v1", "v1", "discovery.k8s.io/v1"])?;
    says(&bench.kubectl("auth whoami")?, &["kubernetes-admin", "system:masters"])?;
    says(&bench.kubectl("auth can-i create pods")?, &["yes"])?;
    says(&bench.kubectl("version")?, &["Server Version: v1.35"])?;
    says(&bench.kubectl("cluster-info")?, &["control plane", "is running at"])
}

fn changing(bench: &Bench) -> Result<()> {
    says(&bench.kubectl("create configmap c --from-literal=a=1")?, &["configmap/c created"])?;
    says(&bench.kubectl("label configmap c tier=gold")?, &["configmap/c labeled"])?;
    ensure!(bench.json("get configmap c")?["metadata"]["labels"]["tier"] == "gold");
    says(&bench.kubectl("annotate configmap c note=x")?, &["configmap/c annotated"])?;
    ensure!(bench.json("get configmap c")?["metadata"]["annotations"]["note"] == "x");
    says(
        &bench.kubectl(r#"patch configmap c --type=merge -p {"data":{"b":"2"}}"#)?,
        &["configmap/c patched"],
    )?;
    says(
        &bench.kubectl(r#"patch configmap c --type=json -p [{"op":"remove","path":"/data/a"}]"#)?,
        &["patched"],
    )?;
    ensure!(bench.json("get configmap c")?["data"] == serde_json::json!({"b": "2"}));
    let strategic = r#"patch deployment web -p {"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"X","value":"y"}]}]}}}}"#;
    says(&bench.kubectl(strategic)?, &["deployment.apps/web patched"])?;
    let environment = &bench.json("get deployment web")?["spec"]["template"]["spec"]["containers"][0]["env"];
    let names: Vec<&str> =
        environment.as_array().context("env")?.iter().filter_map(|e| e["name"].as_str()).collect();
    ensure!(
        names.contains(&"X") && names.contains(&"GREETING"),
        "the strategic patch merges by name: {names:?}"
    );
    let mut edit = bench.cluster.kubectl_command()?;
    edit.args(["edit", "configmap", "c"]).env("KUBE_EDITOR", "sed -i s/b:/edited:/");
    let edited = edit.output()?;
    ensure!(edited.status.success(), "edit: {}", String::from_utf8_lossy(&edited.stderr));
    says(&String::from_utf8(edited.stdout)?, &["configmap/c edited"])?;
    ensure!(bench.json("get configmap c")?["data"]["edited"] == "2");
    Ok(())
}

async fn rollouts(bench: &Bench) -> Result<()> {
    bench.kubectl("rollout status deployment/web --timeout=60s")?;
    let before =
        bench.json("get deployment web")?["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    bench.kubectl("set env deployment/web COLOR=blue")?;
    says(&bench.kubectl("rollout status deployment/web --timeout=60s")?, &["successfully rolled out"])?;
    says(&bench.kubectl("rollout history deployment/web")?, &["REVISION", "CHANGE-CAUSE"])?;
    says(&bench.kubectl("rollout undo deployment/web")?, &["deployment.apps/web rolled back"])?;
    bench.kubectl("rollout status deployment/web --timeout=60s")?;
    let after = &bench.json("get deployment web")?["spec"]["template"]["spec"]["containers"][0]["env"];
    ensure!(before == *after, "undo restores the template: {before} {after}");
    says(&bench.kubectl("scale deployment web --replicas=5")?, &["deployment.apps/web scaled"])?;
    says(&bench.kubectl("rollout status deployment/web --timeout=60s")?, &["successfully rolled out"])?;
    ensure!(bench.json("get deployment web")?["status"]["readyReplicas"] == 5);
    bench.kubectl("scale deployment web --replicas=3")?;
    eventually("three pods", async || {
        let pods = bench.kubectl("get pods -l app=web --no-headers")?;
        Ok((pods.lines().count() == 3).then_some(()))
    })
    .await
}

async fn containers(bench: &Bench) -> Result<()> {
    let pod = bench.one_pod()?;
    let (output, code) = bench.fed(&format!("exec -i {pod} -- cat"), "through the standard input")?;
    ensure!(code == 0 && output == "through the standard input", "exec: {code} {output}");
    let (_, code) = bench.fed(&format!("exec {pod} -- false"), "")?;
    ensure!(code == 1, "kubectl exits as the command did: {code}");
    let output =
        bench.cluster.kubectl(&["exec", &pod, "--", "sh", "-c", "echo $GREETING; cat /etc/web/greeting"])?;
    ensure!(output.matches("Hello from Ephor").count() == 2, "ConfigMap in environment and volume: {output}");

    bench.kubectl("apply -f -").err().context("apply without a manifest must fail")?;
    let counter = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"counter"},"spec":{"terminationGracePeriodSeconds":0,
        "containers":[{"name":"c","image":"ephor.test/sleeper:1","command":["sh","-c","i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.1; done"]}],
        "restartPolicy":"Never"}}"#;
    let (output, code) = bench.fed("apply -f -", counter)?;
    ensure!(code == 0, "{output}");
    bench.kubectl("wait --for=condition=Ready pod/counter --timeout=30s")?;
    let followed = bench.kubectl("logs -f counter")?;
    ensure!(
        followed.lines().count() == 20 && followed.ends_with("line 19\n"),
        "logs -f to the end:\n{followed}"
    );
    ensure!(bench.kubectl("logs counter --tail=2")?.lines().count() == 2);

    let directory = std::env::temp_dir().join(format!("ephor-cp-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("there"), "and back")?;
    let local = directory.to_string_lossy();
    let pod = bench.one_pod()?;
    bench.kubectl(&format!("cp {local}/there {pod}:/tmp/there"))?;
    bench.kubectl(&format!("cp {pod}:/tmp/there {local}/back"))?;
    let back = std::fs::read_to_string(directory.join("back"));
    std::fs::remove_dir_all(&directory)?;
    ensure!(back? == "and back");
    Ok(())
}

/// A kubectl process that is killed when this value is dropped.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("a kubectl in the background could not be ended");
        }
    }
}

fn port_forward(bench: &Bench) -> Result<()> {
    let mut command = bench.cluster.kubectl_command()?;
    command.args(["port-forward", "service/web", ":80"]).stdout(Stdio::piped());
    let mut child = Background(command.spawn()?);
    // The pipe is kept open: with a closed one kubectl would die at its next line.
    let mut output = child.0.stdout.take().context("no output")?;
    let line = read_line(&mut output)?;
    let port = line.split(" -> ").next().and_then(|l| l.rsplit(':').next()).context("no port")?.to_owned();
    for _ in 0..3 {
        let url = format!("http://127.0.0.1:{port}/");
        let answer = std::process::Command::new("curl").args(["-sS", "--max-time", "10", &url]).output()?;
        let body = String::from_utf8(answer.stdout)?;
        ensure!(
            answer.status.success() && body.contains("web-"),
            "the pod's name through the tunnel: {body:?}"
        );
    }
    Ok(())
}

fn read_line(mut output: impl Read) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while output.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

fn waiting_and_events(bench: &Bench) -> Result<()> {
    says(&bench.kubectl("wait --for=condition=Available deployment/web --timeout=30s")?, &["condition met"])?;
    says(&bench.kubectl("events --for deployment/web")?, &["ScalingReplicaSet"])?;
    says(&bench.kubectl("get events")?, &["LAST SEEN", "Scheduled", "Started"])
}

fn dry_runs(bench: &Bench) -> Result<()> {
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  edited: \"3\"\n";
    let (difference, code) = bench.fed("diff -f -", manifest)?;
    ensure!(code == 1, "diff exits with 1 when there is one: {code} {difference}");
    says(&difference, &["-  edited: \"2\"", "+  edited: \"3\""])?;
    let (output, code) = bench.fed("apply --dry-run=server -f -", manifest)?;
    ensure!(code == 0 && output.contains("(server dry run)"), "{output}");
    ensure!(bench.json("get configmap c")?["data"]["edited"] == "2", "a dry run changes nothing");
    Ok(())
}

/// Tests a List: it is no resource, so kubectl reads the OpenAPI v2 document, in protobuf, to learn how to
/// validate its items.
fn lists(bench: &Bench) -> Result<()> {
    let list = |field: &str| {
        format!(
            "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: l}}, {field}: {{a: \"b\"}}}}\n"
        )
    };
    let (output, code) = bench.fed("create --dry-run=server -f -", &list("data"))?;
    ensure!(code == 0 && output.contains("configmap/l created (server dry run)"), "{output}");
    let (output, code) = bench.fed("create --dry-run=server -f -", &list("date"))?;
    ensure!(code == 1 && output.contains("unknown field \"date\""), "{code} {output}");
    Ok(())
}

fn deleting(bench: &Bench) -> Result<()> {
    says(&bench.kubectl("delete configmap c")?, &["configmap \"c\" deleted"])?;
    let missing = bench.kubectl("get configmap c").err().context("it must be gone")?;
    says(&format!("{missing:#}"), &["Error from server (NotFound): configmaps \"c\" not found"])?;
    bench.kubectl("create namespace doomed")?;
    bench.kubectl("create configmap x -n doomed")?;
    bench.kubectl("create deployment d --image=ephor.test/sleeper:1 -n doomed")?;
    says(&bench.kubectl("delete namespace doomed --timeout=60s")?, &["namespace \"doomed\" deleted"])?;
    Ok(())
}

fn drain(bench: &Bench) -> Result<()> {
    let output = bench.kubectl("drain w1 --ignore-daemonsets --delete-emptydir-data --timeout=60s")?;
    says(&output, &["node/w1 cordoned", "node/w1 drained"])?;
    bench.kubectl("rollout status deployment/web --timeout=60s")?;
    let pods = bench.kubectl("get pods -l app=web -o wide --no-headers")?;
    ensure!(!pods.contains(" w1 "), "w1 is empty:\n{pods}");
    says(&bench.kubectl("get node w1")?, &["Ready,SchedulingDisabled"])?;
    says(&bench.kubectl("uncordon w1")?, &["node/w1 uncordoned"])
}
