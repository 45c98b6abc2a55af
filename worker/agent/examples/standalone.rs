//! Runs the agent alone, in kubelet's place: it joins any Kubernetes cluster by a kubeconfig and uses any CRI
//! runtime. For tests against a stock control plane and against containerd; an Ephor worker is built by
//! `worker/node`.
//!
//! `standalone --kubeconfig FILE --node NAME --ip ADDRESS --cri-socket PATH --root DIR --cert PEM --key PEM --client-ca PEM
//!  [--cluster-dns IP] [--cgroup-root PATH] [--listen ADDRESS] [--resolv-conf FILE] [--logs DIR]`

use std::collections::BTreeMap;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_agent::{AgentConfig, serving_config};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let flags = flags()?;
    let required =
        |name: &str| flags.get(name).cloned().ok_or_else(|| Failure::from(format!("--{name} is missing")));
    let read = |name: &str| -> Result<Vec<u8>, Failure> { Ok(std::fs::read(required(name)?)?) };
    let tls = serving_config(&read("cert")?, &read("key")?, &read("client-ca")?)?;
    let (_sender, serving_tls) = watch::channel(tls);
    let mut config = AgentConfig::new(
        required("node")?,
        required("ip")?.parse()?,
        required("cri-socket")?,
        required("root")?,
        serving_tls,
    );
    for (name, value) in &flags {
        match name.as_str() {
            "cluster-dns" => config.cluster_dns = vec![value.parse()?],
            "cgroup-root" => config.cgroup_root.clone_from(value),
            "listen" => config.listen = value.parse()?,
            "resolv-conf" => config.resolv_conf = value.into(),
            "logs" => config.pod_log_dir = value.into(),
            _ => {}
        }
    }
    let kubeconfig = Kubeconfig::read_from(required("kubeconfig")?)?;
    let mut client = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    client.read_timeout = None;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    worker_agent::run(config, kube::Client::try_from(client)?, shutdown).await?;
    Ok(())
}

fn flags() -> Result<BTreeMap<String, String>, Failure> {
    let mut flags = BTreeMap::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").ok_or_else(|| Failure::from(format!("unexpected {word}")))?;
        flags.insert(
            name.to_owned(),
            words.next().ok_or_else(|| Failure::from(format!("{word} needs a value")))?,
        );
    }
    Ok(flags)
}
