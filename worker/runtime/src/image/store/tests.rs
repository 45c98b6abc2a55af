//! Tests concurrent pulls, from a minimal registry.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::image::content::digest_of;

/// Deadline that only a hanging test exceeds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The registry's content, by path below `/v2/`. Requests for empty content are never answered.
type Content = Arc<BTreeMap<String, Vec<u8>>>;

async fn answer(mut client: TcpStream, content: Content) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches("/v2/").to_owned();
    let (status, body) = match content.get(&path) {
        _ if path.is_empty() => ("200 OK", &[][..]),
        Some(body) if body.is_empty() => return std::future::pending().await,
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &[][..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body).await?;
    client.shutdown().await
}

async fn registry(content: BTreeMap<String, Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("address").port();
    let content = Arc::new(content);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(answer(client, content.clone()));
        }
    });
    port
}

/// Adds an image of these layers to the registry; a layer without content is not stored there.
fn add_image(
    content: &mut BTreeMap<String, Vec<u8>>,
    name: &str,
    config: Option<&[u8]>,
    layers: &[(&[u8], bool)],
) {
    let none = json!({ "rootfs": { "diff_ids": [] } }).to_string().into_bytes();
    let config = config.unwrap_or(&none);
    let describe = |bytes: &[u8]| json!({ "digest": digest_of(bytes), "size": bytes.len() });
    let listed: Vec<_> = layers.iter().map(|(bytes, _)| describe(bytes)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": describe(config), "layers": listed });
    content.insert(format!("{name}/manifests/1"), manifest.to_string().into_bytes());
    content.insert(format!("{name}/blobs/{}", digest_of(config)), config.to_vec());
    for (bytes, _) in layers.iter().filter(|(_, there)| *there) {
        content.insert(format!("{name}/blobs/{}", digest_of(bytes)), bytes.to_vec());
    }
}

#[tokio::test]
async fn a_failed_pull_holds_up_no_other_and_keeps_what_it_fetched() {
    let mut content = BTreeMap::new();
    add_image(&mut content, "good", None, &[]);
    add_image(&mut content, "broken", None, &[(b"the first layer", true), (b"the second layer", false)]);
    add_image(&mut content, "slow", Some(b"a configuration that never comes"), &[]);
    content.insert(format!("slow/blobs/{}", digest_of(b"a configuration that never comes")), Vec::new());
    let port = registry(content).await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let store =
        ImageStore::open(directory.path(), ImageLimits::default(), Registries::default()).expect("open");
    let pull = |name: &str| {
        let (store, name) = (store.clone(), format!("127.0.0.1:{port}/{name}:1"));
        async move {
            let reference: Reference = name.parse().expect("a name");
            store.pull(&reference, RegistryCredentials::Anonymous, None).await
        }
    };
    let slow = tokio::spawn(pull("slow"));
    let manifest = || store.inner.blobs.list().expect("blobs").len();
    let started = async {
        while manifest() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, started).await.expect("the slow pull has begun");
    let broken = tokio::time::timeout(PATIENCE, pull("broken")).await.expect("it waits for the slow one");
    assert!(matches!(broken, Err(ImageError::Pull { .. })), "{broken:?}");
    let first = digest_of(b"the first layer");
    assert!(store.inner.blobs.has(&first, 0).expect("look"), "what it fetched is thrown away");
    let good = tokio::time::timeout(PATIENCE, pull("good")).await.expect("it waits for the slow one");
    let good = good.expect("a good image");
    let removed = tokio::time::timeout(PATIENCE, store.remove(&good.id, BTreeSet::new)).await;
    removed.expect("a removal waits for the slow pull").expect("removed");
    assert!(!store.inner.blobs.has(&good.id, 0).expect("look"), "a blob of a removed image is left");
    assert!(!slow.is_finished());
    slow.abort();
}

#[test]
fn what_is_held_is_not_removed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store =
        ImageStore::open(directory.path(), ImageLimits::default(), Registries::default()).expect("open");
    let hold = store.inner.blobs.holds().hold();
    let digest = store.inner.blobs.put(b"content", &hold).expect("put");
    let names = [digest.as_str()];
    store.remove_unused(names.into_iter(), |_| true).expect("nothing to do");
    assert!(store.inner.blobs.has(&digest, 0).expect("look"));
    drop(hold);
    store.remove_unused(names.into_iter(), |_| false).expect("a container stands on it");
    assert!(store.inner.blobs.has(&digest, 0).expect("look"));
    store.remove_unused(names.into_iter(), |_| true).expect("remove");
    assert!(!store.inner.blobs.has(&digest, 0).expect("look"));
}
