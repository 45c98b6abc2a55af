//! Sends bad input and expects the answers Kubernetes gives; the server stays up and loses nothing. Requests
//! are raw HTTP, so that no client library corrects them.

use anyhow::{Context, Result, ensure};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tests::Cluster;

/// One bad request with the expected answer: HTTP status, reason, and a part of the message.
struct Case {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    content: &'static str,
    body: Vec<u8>,
    code: u16,
    reason: &'static str,
    message: &'static str,
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const JSON: &str = "application/json";

fn case(
    what: &'static str,
    path: &'static str,
    body: impl Into<Vec<u8>>,
    code: u16,
    reason: &'static str,
    message: &'static str,
) -> Case {
    Case { what, method: "POST", path, content: JSON, body: body.into(), code, reason, message }
}

fn deployment(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "bad" },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c", "image": "i" }] } } }
    });
    change(&mut object);
    object.to_string().into_bytes()
}

fn cases() -> Vec<Case> {
    let nested = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"n"}},"data":{}1{}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    let large = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "l" }, "data": { "k": "x".repeat(3 << 20) } });
    let strict = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let strict_map = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let mut cases = vec![
        case("malformed JSON", CONFIG_MAPS, "{", 400, "BadRequest", ""),
        case("oversized", CONFIG_MAPS, large.to_string(), 413, "RequestEntityTooLarge", "limit is 3145728"),
        case("deeply nested", CONFIG_MAPS, nested, 400, "BadRequest", ""),
        case(
            "wrongly typed",
            DEPLOYMENTS,
            deployment(|d| d["spec"]["replicas"] = json!("one")),
            400,
            "BadRequest",
            "cannot unmarshal string",
        ),
        case(
            "unknown field",
            strict,
            deployment(|d| d["spec"]["replica"] = json!(1)),
            400,
            "BadRequest",
            r#"unknown field "spec.replica""#,
        ),
        case(
            "duplicate key",
            strict_map,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"d","name":"e"}}"#,
            400,
            "BadRequest",
            r#"duplicate field "metadata.name""#,
        ),
        case(
            "unknown API version",
            CONFIG_MAPS,
            r#"{"apiVersion":"v9","kind":"ConfigMap","metadata":{"name":"v"}}"#,
            400,
            "BadRequest",
            "v9",
        ),
        case(
            "negative replicas",
            DEPLOYMENTS,
            deployment(|d| d["spec"]["replicas"] = json!(-1)),
            422,
            "Invalid",
            "must be greater than or equal to 0",
        ),
        case(
            "selector that misses its template",
            DEPLOYMENTS,
            deployment(|d| d["spec"]["selector"]["matchLabels"]["a"] = json!("c")),
            422,
            "Invalid",
            "does not match template `labels`",
        ),
        case(
            "a bad name",
            CONFIG_MAPS,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"Not_A_Name"}}"#,
            422,
            "Invalid",
            "RFC 1123 subdomain",
        ),
        case(
            "a missing namespace",
            "/api/v1/namespaces/nowhere/configmaps",
            r#"{"metadata":{"name":"x"}}"#,
            404,
            "NotFound",
            r#"namespaces "nowhere" not found"#,
        ),
    ];
    let get = |what, path, code, reason, message| Case {
        method: "GET",
        ..case(what, path, "", code, reason, message)
    };
    cases.push(get(
        "a bad label selector",
        "/api/v1/pods?labelSelector=a%20in%20(",
        400,
        "BadRequest",
        "unable to parse requirement",
    ));
    cases.push(get(
        "a bad field selector",
        "/api/v1/pods?fieldSelector=spec.nothing%3Dx",
        400,
        "BadRequest",
        "field label not supported",
    ));
    cases.push(get(
        "an unknown resource",
        "/api/v1/namespaces/default/gizmos",
        404,
        "NotFound",
        "could not find the requested resource",
    ));
    let patch = |what, content, body: &str, code, reason, message| Case {
        method: "PATCH",
        content,
        ..case(what, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", body, code, reason, message)
    };
    cases.push(patch(
        "a bad patch",
        "application/json-patch+json",
        r#"[{"op":"replace","path":"/none/here","value":1}]"#,
        422,
        "Invalid",
        "",
    ));
    let mut doubling = r#"[{"op":"add","path":"/data","value":{"a":"b"}}"#.to_owned();
    for number in 0..60 {
        doubling += &format!(r#",{{"op":"copy","from":"/data","path":"/data/x{number}"}}"#);
    }
    cases.push(patch(
        "a patch that doubles the object with each operation",
        "application/json-patch+json",
        &(doubling + "]"),
        413,
        "RequestEntityTooLarge",
        "copied",
    ));
    let aliases = format!("a: &a [{}]\nb: [{}]\n", ["0"; 20_000].join(","), ["*a"; 20_000].join(","));
    cases.push(Case {
        content: "application/yaml",
        ..case(
            "aliases that make a small document a large one",
            CONFIG_MAPS,
            aliases,
            400,
            "BadRequest",
            "aliasing",
        )
    });
    cases.push(patch("a patch that is none", "application/merge-patch+json", "[", 400, "BadRequest", ""));
    cases.push(patch(
        "a patch of an unknown type",
        "text/plain",
        "{}",
        415,
        "UnsupportedMediaType",
        "415: Unsupported Media Type",
    ));
    cases
}

async fn send(client: &Client, case: &Case) -> Result<(u16, Value)> {
    let request = Request::builder()
        .method(case.method)
        .uri(case.path)
        .header("content-type", case.content)
        .body(case.body.clone().into())?;
    let response = client.send(request).await?;
    let code = response.status().as_u16();
    let body = kube::client::Body::collect_bytes(response.into_body()).await?;
    Ok((code, serde_json::from_slice(&body).context("the answer is not JSON")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_the_answer_of_kubernetes_and_harms_nothing() -> Result<()> {
    let cluster = Cluster::up(1, 1).await?;
    let client = cluster.client();
    let before = cluster.kubectl(&["get", "configmaps,secrets,services", "-A", "-o", "name"])?;
    let mut wrong = Vec::new();
    for case in cases() {
        let (code, status) = send(&client, &case).await.with_context(|| case.what.to_owned())?;
        let message = status["message"].as_str().unwrap_or_default();
        let right = code == case.code && status["reason"] == case.reason && message.contains(case.message);
        if !(right && status["kind"] == "Status") {
            wrong.push(format!(
                "{}: wanted {} {} {:?}, got {code} {status}",
                case.what, case.code, case.reason, case.message
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(cluster.kubectl(&["get", "configmaps,secrets,services", "-A", "-o", "name"])? == before);
    let forged = cluster.kubectl(&["get", "secrets", "--as=alice"]);
    ensure!(format!("{forged:?}").contains("cannot impersonate"), "impersonation is ignored: {forged:?}");
    foreign_certificate(&cluster)?;
    corrupt_image(&cluster)?;
    ensure!(cluster.kubectl(&["get", "--raw", "/readyz"])? == "ok");
    cluster.passed()
}

/// Checks that a client certificate of another CA does not authenticate.
fn foreign_certificate(cluster: &Cluster) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("ephor-foreign-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (key, certificate) = (directory.join("k"), directory.join("c"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
        ])
        .args(["-subj", "/O=system:masters/CN=intruder", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    let answer = cluster.kubectl(&[
        "get",
        "secrets",
        "--client-key",
        &key.to_string_lossy(),
        "--client-certificate",
        &certificate.to_string_lossy(),
    ]);
    std::fs::remove_dir_all(&directory)?;
    ensure!(answer.is_err(), "a foreign certificate was let in: {answer:?}");
    Ok(())
}

/// Checks that a damaged archive is refused and nothing of it is kept.
fn corrupt_image(cluster: &Cluster) -> Result<()> {
    let images = std::env::var("EPHOR_TEST_IMAGES")?;
    let archive = std::fs::read_dir(images)?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "tar"))
        .context("no archive")?;
    let mut bytes = std::fs::read(archive)?;
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 64] {
        *byte ^= 0xff;
    }
    let path = std::env::temp_dir().join(format!("ephor-corrupt-{}.tar", std::process::id()));
    std::fs::write(&path, bytes)?;
    let socket = "/run/ephor-dev/w1/cri.sock";
    let answer = cluster.ephor(&["image", "load", &path.to_string_lossy(), "--socket", socket]);
    std::fs::remove_file(&path)?;
    let error = answer.err().context("a corrupt archive was accepted")?;
    ensure!(format!("{error:#}").contains("digest"), "the error names the digest: {error:#}");
    Ok(())
}
