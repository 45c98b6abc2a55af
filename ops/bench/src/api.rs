//! Measures create, get and list at two API servers, one after the other, with the
//! same client.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::timing::{Figures, Operation, drive, report};

const NAMESPACE: &str = "ephor-bench";
const CLIENTS: [usize; 2] = [1, 64];
const VALUE_BYTES: usize = 1024;

/// Measures both servers and prints the report.
pub async fn run(ours: &Path, stock: Option<&Path>, span: Duration, pods: usize) -> Result<()> {
    let mut sides = vec![("ephor", measure(ours, span, pods).await?)];
    if let Some(stock) = stock {
        sides.push(("stock", measure(stock, span, pods).await?));
    }
    for (number, (what, _)) in sides[0].1.iter().enumerate() {
        let line: Vec<_> = sides.iter().map(|(side, lines)| (*side, lines[number].1)).collect();
        report(what, &line);
    }
    Ok(())
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn measure(kubeconfig: &Path, span: Duration, pods: usize) -> Result<Vec<(String, Figures)>> {
    let client = client(kubeconfig).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("an earlier run left its namespace")?;
    let result = lines(kubeconfig, &client, span, pods).await;
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    result
}

async fn lines(
    kubeconfig: &Path,
    client: &Client,
    span: Duration,
    pods: usize,
) -> Result<Vec<(String, Figures)>> {
    let mut lines = Vec::new();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    for clients in CLIENTS {
        let figures = with_clients(kubeconfig, clients, span, {
            let path = path.clone();
            move |client, number, count| {
                let path = path.clone();
                let name = format!("bench-{clients}-{number}-{count}");
                async move { create(&client, &path, &config_map(&name)).await }.boxed()
            }
        });
        lines.push((format!("create ConfigMap 1 KiB, {clients}"), figures.await?));
    }
    for clients in CLIENTS {
        let figures = with_clients(kubeconfig, clients, span, {
            let path = format!("{path}/bench-1-0-0");
            move |client, _, _| {
                let path = path.clone();
                async move { get(&client, &path).await }.boxed()
            }
        });
        lines.push((format!("get ConfigMap 1 KiB, {clients}"), figures.await?));
    }
    let listed = format!("{path}?limit=500");
    let list = |path: String| {
        move |client: Client, _, _| {
            let path = path.clone();
            async move { get(&client, &path).await }.boxed()
        }
    };
    lines.push(("list 500 ConfigMaps, 1".to_owned(), with_clients(kubeconfig, 1, span, list(listed)).await?));
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    for number in 0..pods {
        create(client, &path, &pod(&format!("bench-{number}"))).await?;
    }
    let figures = with_clients(kubeconfig, 1, span, list(path.clone())).await?;
    lines.push((format!("list {pods} pods, 1"), figures));
    let delete = http::Request::delete(format!("{path}?gracePeriodSeconds=0")).body(Vec::new())?;
    client.request_text(delete).await?;
    Ok(lines)
}

async fn with_clients<F>(kubeconfig: &Path, clients: usize, span: Duration, operation: F) -> Result<Figures>
where
    F: Fn(Client, usize, u64) -> BoxFuture<'static, Result<()>> + Clone + Send + Sync + 'static,
{
    // At most eight connections, as a few controllers would have.
    let mut connections = Vec::new();
    for _ in 0..clients.min(8) {
        connections.push(client(kubeconfig).await?);
    }
    drive(clients, span, |number| -> Operation {
        let (client, operation) = (connections[number % connections.len()].clone(), operation.clone());
        Box::new(move |count| operation(client.clone(), number, count))
    })
    .await
}

async fn create(client: &Client, path: &str, object: &Value) -> Result<()> {
    let request = http::Request::post(path).header("content-type", "application/json");
    client.request_text(request.body(serde_json::to_vec(object)?)?).await?;
    Ok(())
}

async fn get(client: &Client, path: &str) -> Result<()> {
    client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    Ok(())
}

fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
        "data": { "value": "v".repeat(VALUE_BYTES) },
    })
}

/// A pod that no scheduler handles.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{ "name": "main", "image": "nothing" }],
        },
    })
}
