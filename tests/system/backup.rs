//! Backup and restore: a cluster of three is backed up to a file, to S3 and on a schedule, loses its quorum
//! and then all masters, and is restored on new hosts. The objects are there, revisions have gone up, a watch
//! from before lists again and converges, other masters join, and the old masters stay separate.
//!
//! `EPHOR_RESTORE_OBJECTS` is the number of objects of 1 KiB.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use tests::hosts::{Bridge, Host, Running, run};
use tests::s3::{ACCESS_KEY, SECRET_KEY, Server};
use tests::{eventually, says};

const PREFIX: &str = "ephbk";
const NETWORK: &str = "10.99.8";
/// Size of an object's content in bytes.
const CONTENT_BYTES: usize = 1024;
/// Maximum number of requests in progress while objects are created.
const CREATING: usize = 64;

/// Directory with all files of the test.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_string_lossy().into_owned()
    }
}

/// Returns the number of objects to create.
fn count() -> Result<usize> {
    match std::env::var("EPHOR_RESTORE_OBJECTS") {
        Ok(text) => text.parse().context("EPHOR_RESTORE_OBJECTS"),
        Err(_) => Ok(1000),
    }
}

/// Creates a client of one master from a kubeconfig made for the first master.
async fn client(kubeconfig: &str, host: &Host, token: Option<&str>) -> Result<Client> {
    let mut file = Kubeconfig::read_from(kubeconfig)?;
    for cluster in file.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
        cluster.server = Some(format!("https://{}:6443", host.address));
    }
    if let Some(token) = token {
        for user in file.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            (user.client_certificate_data, user.client_key_data) = (None, None);
            user.token = Some(token.to_owned().into());
        }
    }
    Ok(Client::try_from(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)?)
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

async fn create(client: &Client, names: impl Iterator<Item = String>) -> Result<()> {
    let (maps, content) = (maps(client), "x".repeat(CONTENT_BYTES));
    futures::stream::iter(names.map(Ok))
        .try_for_each_concurrent(CREATING, |name| {
            let (maps, content) = (maps.clone(), content.clone());
            async move {
                let map = json!({ "metadata": { "name": name }, "data": { "content": content } });
                maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
                anyhow::Ok(())
            }
        })
        .await
}

/// Lists the ConfigMaps: their names with revisions, and the revision of the list.
async fn listed(client: &Client) -> Result<(BTreeMap<String, u64>, u64)> {
    let list = maps(client).list(&ListParams::default()).await?;
    let revision = list.metadata.resource_version.context("a list without a revision")?.parse()?;
    let name = |map: &ConfigMap| Ok((map.name_any(), map.resource_version().context("a revision")?.parse()?));
    let names = list.items.iter().filter(|map| map.name_any() != "kube-root-ca.crt").map(name);
    Ok((names.collect::<Result<_>>()?, revision))
}

/// Returns the flags of a master on a host.
fn master<'a>(host: &'a Host, name: &'a str, data: &'a str) -> Vec<&'a str> {
    vec!["master", "--name", name, "--data-dir", data, "--advertise-address", &host.address]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_gone_comes_back_from_its_backup() -> Result<()> {
    let place = Place { root: tempfile::tempdir()? };
    let result = from_backup_to_restore(&place).await;
    if result.is_err() {
        for name in ["a", "b", "c", "x", "y", "z"] {
            let log = std::fs::read_to_string(place.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {name} ---\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
    result
}

/// The old cluster, until it is destroyed.
struct Old {
    hosts: Vec<Host>,
    running: Vec<Running>,
    kubeconfig: String,
    client: Client,
}

async fn from_backup_to_restore(place: &Place) -> Result<()> {
    let bridge = Bridge::new(PREFIX, NETWORK)?;
    let mut old = old_cluster(place, &bridge).await?;
    let objects = count()?;
    let begun = Instant::now();
    create(&old.client, (0..objects).map(|number| format!("o{number:06}"))).await?;
    println!("{objects} objects made in {:.1} s", begun.elapsed().as_secs_f64());
    let (before, revision) = listed(&old.client).await?;
    ensure!(before.len() == objects, "{} of {objects} objects", before.len());
    let token = token_of(&old.client).await?;
    std::fs::write(place.path("passphrase"), "correct horse battery staple\n")?;
    std::fs::create_dir_all(place.path("s3/backups"))?;
    let s3 = Server::start(Path::new(&place.path("s3")), &bridge.address()).await?;
    let bundle = save(place, &old, &s3)?;
    // A client from before the restore, which is used after it too.
    let watching = watcher::Config::default();
    let (new_client, changed) = tokio::sync::watch::channel(old.client.clone());
    let watch = tokio::spawn(follow(changed, watching));
    create(&old.client, (0..20).map(|number| format!("lost{number}"))).await?;
    scheduled(place, &old, &s3).await?;
    let (_, last_revision) = listed(&old.client).await?;
    without_quorum(place, &mut old)?;

    let (x, y, z) = (bridge.host("x", 11)?, bridge.host("y", 12)?, bridge.host("z", 13)?);
    let (data, passphrase) = (place.path("x"), place.path("passphrase"));
    interrupted(place, &x, &bundle)?;
    let begun = Instant::now();
    let said = x.ephor(&restore(&passphrase, &bundle, &data))?;
    says(&said, &["of a new cluster", "ephor master --data-dir"])?;
    let restored = begun.elapsed();
    let again = x.refused(&restore(&passphrase, &bundle, &data))?;
    says(&again, &["is not empty"])?;
    let _x = x.start(place.root.path().join("x.log").as_path(), &master(&x, "x", &data))?;
    let client_x = client(&old.kubeconfig, &x, None).await?;
    let (after, new_revision) =
        eventually("the restored objects", async || Ok(Some(listed(&client_x).await?))).await?;
    println!(
        "{objects} objects restored in {:.1} s, served {:.1} s after the command was given",
        restored.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    ensure!(after == before, "other objects, or other revisions of theirs");
    ensure!(new_revision > last_revision + 900_000_000, "{last_revision} -> {new_revision}");
    gone(&client_x, &before, revision).await?;
    new_client.send(client_x.clone())?;
    create(&client_x, ["new".to_owned()].into_iter()).await?;
    let seen = tokio::time::timeout(Duration::from_secs(60), watch)
        .await
        .context("the watch did not converge")??;
    ensure!(seen? == after.len() + 1, "the watcher holds something else");

    // The restored keys are the old ones: a token issued before is valid now.
    let by_token = client(&old.kubeconfig, &x, Some(&token)).await?;
    let reviews = Api::<SelfSubjectReview>::all(by_token);
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let user = review.status.and_then(|status| status.user_info?.username).unwrap_or_default();
    ensure!(user == "system:serviceaccount:default:default", "{user}");
    let _others = grown(place, &[&x, &y, &z], &old.kubeconfig).await?;
    fenced(place, &old, &x).await
}

async fn old_cluster(place: &Place, bridge: &Bridge) -> Result<Old> {
    let hosts = vec![bridge.host("a", 1)?, bridge.host("b", 2)?, bridge.host("c", 3)?];
    let kubeconfig = place.path("kubeconfig");
    let log = |name: &str| place.root.path().join(format!("{name}.log"));
    let data = place.path("a");
    hosts[0].ephor(&[&master(&hosts[0], "a", &data)[..], &["--init"]].concat())?;
    let mut running = vec![hosts[0].start(&log("a"), &master(&hosts[0], "a", &data))?];
    let server = format!("https://{}:6443", hosts[0].address);
    hosts[0].ephor(&["kubeconfig", "--data-dir", &data, "--server", &server, "-o", &kubeconfig])?;
    let token = ["token", "create", "--role", "master", "--kubeconfig", &kubeconfig];
    let token = eventually("a token", async || Ok(Some(hosts[0].ephor(&token)?))).await?;
    for (host, name) in hosts.iter().zip(["a", "b", "c"]).skip(1) {
        let (data, to) = (place.path(name), format!("{}:6444", hosts[0].address));
        let join = ["--join", &to, "--token", token.trim()];
        running.push(host.start(&log(name), &[&master(host, name, &data)[..], &join].concat())?);
    }
    voters(&hosts[0], &kubeconfig, 3).await?;
    // The leader publishes the list of masters; from then on they are found without an address.
    let found = ["members", "--kubeconfig", &kubeconfig];
    eventually("the masters to be found", async || Ok(Some(hosts[2].ephor(&found)?))).await?;
    let client = client(&kubeconfig, &hosts[0], None).await?;
    Ok(Old { hosts, running, kubeconfig, client })
}

/// Waits until `wanted` masters vote.
async fn voters(host: &Host, kubeconfig: &str, wanted: usize) -> Result<()> {
    let address = format!("{}:6444", host.address);
    eventually("all masters to vote", async || {
        let list = host.ephor(&["members", "--kubeconfig", kubeconfig, "--address", &address])?;
        let votes = |line: &&str| line.ends_with("voter") || line.ends_with("leader");
        Ok((list.lines().filter(votes).count() == wanted).then_some(()))
    })
    .await
}

async fn token_of(client: &Client) -> Result<String> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    eventually("a token of the default account", async || {
        let request = TokenRequest::default();
        let answer = accounts.create_token_request("default", &PostParams::default(), &request).await?;
        Ok(answer.status.map(|status| status.token))
    })
    .await
}

/// Runs `ephor backup` with the passphrase, and with S3 credentials if `s3` is given.
fn backup(place: &Place, host: &Host, arguments: &[&str], s3: Option<&Server>) -> Result<String> {
    let passphrase = place.path("passphrase");
    let mut command = host.ephor_command(&["backup"])?;
    command.args(arguments).args(["--passphrase-file", &passphrase]);
    if let Some(s3) = s3 {
        command.args(["--endpoint", &s3.endpoint, "--allow-http"]);
        command.envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]);
    }
    run(&mut command)
}

/// Saves to S3 and to a file whose path is returned, and checks that a damaged copy is refused.
fn save(place: &Place, old: &Old, s3: &Server) -> Result<String> {
    let (b, kubeconfig) = (&old.hosts[1], &old.kubeconfig);
    let bundle = place.path("cluster.ephor");
    let begun = Instant::now();
    let said = backup(place, b, &["save", "--to", &bundle, "--kubeconfig", kubeconfig], None)?;
    says(&said, &["revision", "objects", "was written in"])?;
    ensure!(!said.contains("STALE"), "{said}");
    let size = std::fs::metadata(&bundle)?.len();
    println!("saved {size} bytes in {:.1} s", begun.elapsed().as_secs_f64());
    says(&backup(place, b, &["verify", &bundle], None)?, &["is whole"])?;
    let twice = backup(place, b, &["save", "--to", &bundle, "--kubeconfig", kubeconfig], None);
    says(&format!("{:#}", twice.err().context("a bundle was replaced")?), &["it exists"])?;

    let mut bytes = std::fs::read(&bundle)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.path("flipped.ephor"), &bytes)?;
    let flipped = backup(place, b, &["verify", &place.path("flipped.ephor")], None);
    says(&format!("{:#}", flipped.err().context("a flipped bit was not found")?), &["damaged"])?;

    says(
        &backup(place, b, &["save", "--to", "s3://backups/by-hand", "--kubeconfig", kubeconfig], Some(s3))?,
        &["s3://backups/by-hand/backup-"],
    )?;
    let uploaded: Vec<_> = std::fs::read_dir(place.path("s3/backups/by-hand"))?.collect::<Result<_, _>>()?;
    ensure!(uploaded.len() == 1, "{uploaded:?}");
    let url = format!("s3://backups/by-hand/{}", uploaded[0].file_name().to_string_lossy());
    says(&backup(place, b, &["verify", &url], Some(s3))?, &["is whole"])?;
    let missing = backup(place, b, &["verify", "s3://backups/none.ephor"], Some(s3));
    says(&format!("{:#}", missing.err().context("a missing bundle was verified")?), &["no such object"])?;
    Ok(bundle)
}

/// Lets the leader back up to S3 on a schedule, and checks that the oldest backups are removed.
async fn scheduled(place: &Place, old: &Old, s3: &Server) -> Result<()> {
    let (a, kubeconfig) = (&old.hosts[0], ["--kubeconfig", old.kubeconfig.as_str()]);
    let nowhere = ["schedule", "--every", "10s", "--to", "/nowhere/at/all"];
    let failed = backup(place, a, &[&nowhere[..], &kubeconfig].concat(), None);
    says(&format!("{:#}", failed.err().context("a backup went nowhere")?), &["no directory on this master"])?;
    let every = ["schedule", "--every", "10s", "--keep", "2", "--to", "s3://backups/scheduled"];
    says(
        &backup(place, a, &[&every[..], &kubeconfig].concat(), Some(s3))?,
        &["s3://backups/scheduled/scheduled-"],
    )?;
    let show = [&["backup", "schedule", "--show"][..], &kubeconfig].concat();
    says(&a.ephor(&show)?, &["every 10s", "2 are kept", "last success"])?;
    let bundles = || -> Result<Vec<String>> {
        let files = std::fs::read_dir(place.path("s3/backups/scheduled"))?;
        let mut names = files
            .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.retain(|name| name.ends_with(".ephor"));
        names.sort();
        Ok(names)
    };
    let first = bundles()?.into_iter().next().context("there is a first bundle")?;
    eventually("the first bundle to be replaced by newer ones", async || {
        let now = bundles()?;
        Ok((now.len() == 2 && !now.contains(&first)).then_some(()))
    })
    .await?;
    let newest = bundles()?.pop().context("there are bundles")?;
    let url = format!("s3://backups/scheduled/{newest}");
    says(&backup(place, a, &["verify", &url], Some(s3))?, &["is whole"])?;
    a.ephor(&[&["backup", "schedule", "--off"][..], &kubeconfig].concat())?;
    says(&a.ephor(&show)?, &["no backups are scheduled"])
}

/// Kills two of three masters, backs up from the third, and kills that one too.
fn without_quorum(place: &Place, old: &mut Old) -> Result<()> {
    let (hosts, kubeconfig) = (&old.hosts, &old.kubeconfig);
    for _ in 1..hosts.len() {
        old.running.pop().context("a master runs")?.kill()?;
    }
    let (bundle, address) = (place.path("stale.ephor"), format!("{}:6444", hosts[0].address));
    let save = ["save", "--to", &bundle, "--address", &address, "--kubeconfig", kubeconfig];
    says(&backup(place, &hosts[0], &save, None)?, &["STALE", "no quorum"])?;
    says(&backup(place, &hosts[0], &["verify", &bundle], None)?, &["STALE", "is whole"])?;
    old.running.pop().context("a master runs")?.kill()
}

fn restore<'a>(passphrase: &'a str, bundle: &'a str, data: &'a str) -> [&'a str; 9] {
    ["backup", "restore", bundle, "--data-dir", data, "--name", "x", "--passphrase-file", passphrase]
}

/// Kills a restore as each of its files appears: no master starts from the remains, and the next attempt
/// begins again. Leaves the data directory as the last kill left it.
fn interrupted(place: &Place, host: &Host, bundle: &str) -> Result<()> {
    let (data, passphrase) = (place.path("x"), place.path("passphrase"));
    let log = place.root.path().join("restore.log");
    let steps = [
        "restoring.json",
        "objects/state-1/db",
        "objects/CURRENT",
        "log",
        "consensus.json",
        "pki/ca.key",
        "pki/ca.crt",
        "node.json",
    ];
    let mut half = 0;
    for step in steps {
        let mut restoring = host.start(&log, &restore(&passphrase, bundle, &data))?;
        let path = Path::new(&data).join(step);
        while !path.exists() && restoring.ended()?.is_none() {
            std::hint::spin_loop();
        }
        restoring.kill()?;
        if Path::new(&data).join("restoring.json").exists() {
            half += 1;
            says(&host.refused(&master(host, "x", &data))?, &["half restored", "ephor backup restore"])?;
        } else if Path::new(&data).join("node.json").exists() {
            // The restore was faster than the kill: the directory is complete.
            std::fs::remove_dir_all(&data)?;
        }
    }
    println!("{half} of {} restores were killed half way", steps.len());
    ensure!(half >= 5, "the kills come too late to prove anything");
    Ok(())
}

/// Checks that revisions from before the restore are refused with 410, in every kind of request.
async fn gone(client: &Client, objects: &BTreeMap<String, u64>, revision: u64) -> Result<()> {
    let watch = maps(client).watch(&WatchParams::default(), &revision.to_string()).await;
    let code = match watch {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => return Err(error.into()),
        Ok(events) => match events.boxed().next().await.context("the watch just ended")?? {
            WatchEvent::Error(status) => status.code,
            other => anyhow::bail!("the watch goes on with {other:?}"),
        },
    };
    ensure!(code == 410, "{code}");
    let exact = ListParams::default().at(&revision.to_string()).matching(kube::api::VersionMatch::Exact);
    match maps(client).list(&exact).await {
        Err(kube::Error::Api(status)) if status.code == 410 => {}
        other => anyhow::bail!("a list of an old revision: {:?}", other.map(|list| list.items.len())),
    }
    // Updates may still name an object's own old revision.
    let (name, _) = objects.iter().next().context("there are objects")?;
    let mut map = maps(client).get(name).await?;
    map.metadata.labels = Some(BTreeMap::from([("seen".to_owned(), "after".to_owned())]));
    let updated = maps(client).replace(name, &PostParams::default(), &map).await?;
    ensure!(updated.resource_version().context("a revision")?.parse::<u64>()? > revision + 900_000_000);
    Ok(())
}

/// Watches as client-go does, with one client after the other; ends at the first object of the new
/// cluster, and returns the number of known objects.
async fn follow(mut clients: tokio::sync::watch::Receiver<Client>, config: watcher::Config) -> Result<usize> {
    let first = clients.borrow_and_update().clone();
    // Lists and watches the old cluster until its masters are gone.
    let mut known = BTreeMap::new();
    let mut revision = String::new();
    {
        let list = maps(&first).list(&ListParams::default()).await?;
        revision.clone_from(&list.metadata.resource_version.unwrap_or_default());
        let mut events = maps(&first).watch(&WatchParams::default(), &revision).await?.boxed();
        loop {
            tokio::select! {
                changed = clients.changed() => { changed?; break }
                event = events.next() => match event {
                    Some(Ok(WatchEvent::Added(map) | WatchEvent::Modified(map))) => {
                        revision = map.resource_version().unwrap_or_default();
                    }
                    Some(Ok(_)) => {}
                    // The masters are dying; the client of the new cluster will follow.
                    Some(Err(_)) | None => { clients.changed().await?; break }
                },
            }
        }
    }
    let second = clients.borrow().clone();
    let resumed = maps(&second).watch(&WatchParams::default(), &revision).await;
    let expired = match resumed {
        Err(kube::Error::Api(status)) => status.code == 410,
        Err(error) => return Err(error.into()),
        Ok(events) => {
            matches!(events.boxed().next().await, Some(Ok(WatchEvent::Error(status))) if status.code == 410)
        }
    };
    ensure!(expired, "a watch from {revision} went on in another cluster");
    let mut events = watcher(maps(&second), config).boxed();
    let mut whole = false;
    while let Some(event) = events.next().await {
        match event? {
            watcher::Event::InitApply(map) | watcher::Event::Apply(map) => {
                known.insert(map.name_any(), map.resource_version());
            }
            watcher::Event::Delete(map) => drop(known.remove(&map.name_any())),
            watcher::Event::Init => whole = false,
            // Until then the list arrives object by object.
            watcher::Event::InitDone => whole = true,
        }
        if whole && known.contains_key("new") && known.contains_key("kube-root-ca.crt") {
            ensure!(!known.keys().any(|name| name.starts_with("lost")), "what was lost is there");
            return Ok(known.len() - 1);
        }
    }
    anyhow::bail!("the watch ended")
}

/// Lets two more masters join the restored one.
async fn grown(place: &Place, hosts: &[&Host; 3], kubeconfig: &str) -> Result<Vec<Running>> {
    let (x, to) = (hosts[0], format!("{}:6444", hosts[0].address));
    let server = place.path("kubeconfig-x");
    let url = format!("https://{}:6443", x.address);
    x.ephor(&["kubeconfig", "--data-dir", &place.path("x"), "--server", &url, "-o", &server])?;
    let token = x.ephor(&["token", "create", "--role", "master", "--kubeconfig", &server])?;
    let mut running = Vec::new();
    for (host, name) in hosts.iter().zip(["x", "y", "z"]).skip(1) {
        let data = place.path(name);
        let join = ["--join", &to, "--token", token.trim()];
        let log = place.root.path().join(format!("{name}.log"));
        running.push(host.start(&log, &[&master(host, name, &data)[..], &join].concat())?);
    }
    voters(x, kubeconfig, 3).await?;
    let status = ["status", "--digest", "--kubeconfig", kubeconfig, "--address", &to];
    eventually("one state on all three", async || {
        Ok((x.ephor(&status)?.matches(" digest ").count() == 3).then_some(()))
    })
    .await?;
    let mut ids = Vec::new();
    for line in x.ephor(&["members", "--kubeconfig", kubeconfig, "--address", &to])?.lines().skip(1) {
        ids.push(line.split_whitespace().next().and_then(|id| id.parse::<u64>().ok()).context("an id")?);
    }
    ensure!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids go up: {ids:?}");
    Ok(running)
}

/// Starts the old masters with their keys at their old addresses: they remain a separate cluster, and the new
/// one accepts nothing from them.
async fn fenced(place: &Place, old: &Old, x: &Host) -> Result<()> {
    let mut running = Vec::new();
    for (host, name) in old.hosts.iter().zip(["a", "b", "c"]) {
        let log = place.root.path().join(format!("{name}.log"));
        running.push(host.start(&log, &master(host, name, &place.path(name)))?);
    }
    let there =
        eventually("the old masters to serve", async || Ok(Some(listed(&old.client).await?.0))).await?;
    ensure!(there.contains_key("lost0") && !there.contains_key("new"), "the old cluster has lost something");
    let address = format!("{}:6444", x.address);
    let members = x.ephor(&["members", "--kubeconfig", &old.kubeconfig, "--address", &address])?;
    ensure!(!old.hosts.iter().any(|host| members.contains(&format!("{}:6444", host.address))), "{members}");
    let client = client(&old.kubeconfig, x, None).await?;
    create(&client, ["after".to_owned()].into_iter()).await?;
    let here = listed(&client).await?.0;
    ensure!(here.contains_key("after") && !here.contains_key("lost0"), "the new cluster has what was lost");
    Ok(())
}
