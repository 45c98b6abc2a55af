//! A bundle of a real, lone master: damaged in every way, and restored again,
//! also after a death at every operation on the disk.
//!
//! `EPHOR_RESTORE_OBJECTS` says how many objects of 1 KiB are restored where time
//! is measured.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use consensus::testing::lone_master;
use consensus::{Consensus, ConsensusConfig, MasterAddress, Objects, ProposeOptions};
use proto_env::{AppendFile, CancellationToken, Disk, Env, SystemDisk, SystemRandom, TlsNetwork};
use proto_wire::settings::ClusterSettings;
use storage::{Mutation, Precondition, Txn, TxnOutcome};
use time::OffsetDateTime;

use super::bundle::{self, BundleWriter};
use super::manifest::{FORMAT, HEAD, MANIFEST};
use super::*;
use crate::config::MasterConfig;
use crate::identity::MasterIdentity;
use crate::pki::ClusterKeys;
use crate::recover::Survivor;

/// Small scrypt work factor, so that thousands of bundles are opened quickly.
const WORK_FACTOR: u8 = 2;

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple".to_owned())
}

fn env(disk: Arc<dyn Disk>) -> Env {
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    Env { disk, ..env }
}

fn key(number: usize) -> String {
    format!("/registry/core/configmaps/default/c{number:07}")
}

/// Writes `objects` objects of 1 KiB each with random data, which does not compress.
async fn fill(consensus: &Consensus, objects: usize) {
    use proto_env::Random;
    for from in (0..objects).step_by(500) {
        let put = |number: usize| {
            let mut value = vec![0; 1024];
            SystemRandom.fill(&mut value[..256]);
            Mutation::Put { key: key(number), value: value.into() }
        };
        let mutations = (from..objects.min(from + 500)).map(put).collect();
        let txn = Txn { preconditions: Vec::new(), mutations };
        consensus.propose(txn, ProposeOptions::default()).await.unwrap();
    }
}

/// Returns the entries of a backup of a cluster with `objects` objects.
async fn entries(objects: usize) -> Vec<BundleEntry> {
    let directory = tempfile::tempdir().unwrap();
    let env = env(Arc::new(SystemDisk));
    let consensus = lone_master(directory.path(), &env).await.unwrap();
    fill(&consensus, objects).await;
    let keys = ClusterKeys::create("lone", OffsetDateTime::now_utc(), |bytes| bytes.fill(9)).unwrap();
    let settings = ClusterSettings { vxlan_id: 7, ..ClusterSettings::default() };
    let source = BackupSource::new(consensus.clone(), Arc::new(keys), settings, "m".to_owned(), env);
    let opened = source.open().await.unwrap();
    assert_eq!(opened.head().stale, None);
    let mut stream = opened.stream();
    let mut entries = Vec::new();
    while let Some(entry) = stream.recv().await {
        entries.push(entry.unwrap());
    }
    consensus.shutdown().await;
    entries
}

fn bundle_of(entries: &[BundleEntry]) -> Vec<u8> {
    let mut writer = BundleWriter::with_work_factor(Vec::new(), &passphrase(), WORK_FACTOR).unwrap();
    for entry in entries {
        writer.push(entry).unwrap();
    }
    writer.finish().unwrap().0
}

/// Builds a bundle that is encrypted correctly from entries that may be wrong.
fn forged(entries: &[BundleEntry]) -> Vec<u8> {
    let mut recipient = age::scrypt::Recipient::new(passphrase().secret());
    recipient.set_work_factor(WORK_FACTOR);
    let recipients: [&dyn age::Recipient; 1] = [&recipient];
    let encryptor = age::Encryptor::with_recipients(recipients.into_iter()).unwrap();
    let compressed = zstd::Encoder::new(encryptor.wrap_output(Vec::new()).unwrap(), 1).unwrap();
    let mut tar = tar::Builder::new(compressed);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.data.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, &entry.name, &entry.data[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap().finish().unwrap()
}

fn check(bytes: &[u8]) -> Result<BundleManifest, Error> {
    verify(bytes, &passphrase())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_is_found() {
    let mut entries = entries(20).await;
    let bytes = bundle_of(&entries);
    let manifest = check(&bytes).unwrap();
    assert_eq!((manifest.head.objects, manifest.head.format), (20, FORMAT));
    let text = |until: usize| String::from_utf8_lossy(&bytes[..until]).into_owned();
    assert!(text(21).starts_with("age-encryption.org/v1"), "{}", text(21));
    // The lines of the header, its authentication and the nonce; then the content.
    let body = bytes.windows(5).position(|window| window == b"\n--- ").unwrap() + 5 + 43 + 1 + 16;
    let header = (0..body * 8).map(|bit| (bit / 8, bit % 8));
    let content = (body..bytes.len()).step_by(17).map(|at| (at, at % 8));
    let tail = (bytes.len() - 40..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit)));
    let mut tried = 0;
    for (at, bit) in header.chain(content).chain(tail) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        assert!(check(&flipped).is_err(), "bit {bit} of byte {at} of {}", bytes.len());
        tried += 1;
    }
    println!("{tried} flipped bits found in {} bytes", bytes.len());
    for length in (0..body + 64).chain((body..bytes.len()).step_by(397)) {
        assert!(check(&bytes[..length]).is_err(), "cut to {length} of {} bytes", bytes.len());
    }
    assert!(check(&bytes[..bytes.len() - 1]).is_err());
    assert!(check(&[&bytes[..], b"x"].concat()).is_err());
    assert!(check(&[&bytes[..], &bytes[..]].concat()).is_err());

    let other = verify(&bytes[..], &Passphrase::new("correct horse battery stable".to_owned()));
    assert!(matches!(other, Err(Error::Passphrase)), "{other:?}");
    assert!(matches!(check(b"apiVersion: v1\nkind: Secret\n"), Err(Error::NotABundle(_))));
    assert!(matches!(check(b""), Err(Error::NotABundle(_))));

    let head = entries.iter_mut().find(|entry| entry.name == HEAD).unwrap();
    let later = String::from_utf8(head.data.to_vec()).unwrap().replace("\"format\": 1", "\"format\": 2");
    head.data = later.into();
    assert!(matches!(check(&forged(&entries)), Err(Error::Version(2))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_opens_but_is_not_what_was_saved_is_refused() {
    let entries = entries(2000).await;
    check(&forged(&entries)).unwrap();
    assert!(entries.len() > 10, "several frames: {}", entries.len());
    for left_out in 0..entries.len() {
        let mut others = entries.clone();
        let name = others.remove(left_out).name;
        assert!(check(&forged(&others)).is_err(), "without {name}");
    }
    let first_frame = entries.iter().position(|entry| entry.name.ends_with("/00000000")).unwrap();
    let mut swapped = entries.clone();
    let name = swapped[first_frame + 1].name.clone();
    swapped[first_frame + 1].name = std::mem::replace(&mut swapped[first_frame + 2].name, name);
    swapped.swap(first_frame + 1, first_frame + 2);
    assert!(check(&forged(&swapped)).is_err(), "two frames swapped");
    let mut longer = entries.clone();
    longer.push(BundleEntry { name: "more".to_owned(), data: Bytes::new() });
    assert!(check(&forged(&longer)).is_err(), "an entry after {MANIFEST}");
    let mut twice = entries.clone();
    twice.insert(1, twice[0].clone());
    assert!(check(&forged(&twice)).is_err(), "two heads");
}

#[test]
fn a_master_that_stops_in_the_middle_leaves_no_bundle() {
    let writer = BundleWriter::with_work_factor(Vec::new(), &passphrase(), WORK_FACTOR).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Source(_))));
}

fn options(data_dir: &Path) -> RestoreOptions {
    RestoreOptions { data_dir: data_dir.to_owned(), name: "x".to_owned(), ..RestoreOptions::default() }
}

/// Starts the master of a data directory, as `build` does, and waits until it leads.
async fn started(data_dir: &Path) -> (Arc<Consensus>, MasterIdentity) {
    let env = env(Arc::new(SystemDisk));
    let config = MasterConfig { data_dir: data_dir.to_owned(), ..MasterConfig::default() };
    let identity = MasterIdentity::obtain(&config, &env).await.unwrap();
    let consensus = Consensus::start(
        ConsensusConfig {
            node_id: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            address: MasterAddress {
                name: "x".to_owned(),
                peer_address: "127.0.0.1:6444".to_owned(),
                api_address: "127.0.0.1:6443".to_owned(),
                replaces: 0,
            },
            data_dir: data_dir.to_owned(),
            data_key: *identity.keys.data_key,
            heartbeat: consensus::DEFAULT_HEARTBEAT,
            election_min: consensus::DEFAULT_ELECTION_MIN,
            election_max: consensus::DEFAULT_ELECTION_MAX,
            log_bytes: consensus::DEFAULT_LOG_BYTES,
            snapshot_count: consensus::DEFAULT_SNAPSHOT_COUNT,
            objects: Objects::Sled,
            started_before: identity.started_before,
            disk_reserve: consensus::DiskReserve::default(),
            autopilot: consensus::AutopilotConfig::default(),
            peers: Vec::new(),
        },
        env,
    );
    let consensus = consensus.await.unwrap();
    let mut leadership = consensus.leadership();
    let leads = leadership.wait_for(|now| now.leading);
    tokio::time::timeout(Duration::from_secs(30), leads).await.unwrap().unwrap();
    (consensus, identity)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_master_goes_on_with_later_revisions_and_an_id_nobody_had() {
    let bytes = bundle_of(&entries(1500).await);
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let (manifest, restored) =
        restore(&bytes[..], &passphrase(), &options(&data), &env(Arc::new(SystemDisk))).unwrap();
    assert_eq!(restored.revision, manifest.head.revision + 1_000_000_000);
    assert!(restored.node_id > manifest.head.applied_index);
    for round in 0..2 {
        let (consensus, identity) = started(&data).await;
        assert_ne!(identity.cluster_id, manifest.head.cluster_id);
        assert_eq!((identity.settings.vxlan_id, *identity.keys.data_key), (7, [9; 32]));
        let members = consensus.members();
        assert_eq!(members.len(), 1, "{members:?}");
        assert_eq!((members[0].id, members[0].voter), (restored.node_id, true));
        let store = consensus.store();
        assert_eq!(store.len(), 1500 + round);
        assert!(store.watch("/registry/", manifest.head.revision).is_err(), "a watch of before goes on");
        // The revision an object had is what an update may name.
        let object = store.get(&key(3)).unwrap();
        assert!(round == 1 || object.mod_revision <= manifest.head.revision);
        let at = Precondition::AtRevision { key: key(3), mod_revision: object.mod_revision };
        let mutations = vec![
            Mutation::Put { key: key(3), value: "changed".into() },
            Mutation::Put { key: format!("/registry/new{round}"), value: "new".into() },
        ];
        let txn = Txn { preconditions: vec![at], mutations };
        match consensus.propose(txn, ProposeOptions::default()).await.unwrap() {
            TxnOutcome::Committed { revisions } => assert!(revisions[0] > restored.revision, "{revisions:?}"),
            other => panic!("{other:?}"),
        }
        let joiner = MasterAddress { name: format!("y{round}"), ..MasterAddress::default() };
        let id = consensus.add_master(joiner, Duration::from_secs(20)).await.unwrap();
        assert!(id > restored.node_id);
        consensus.remove_master(id, Duration::from_secs(20)).await.unwrap();
        consensus.shutdown().await;
    }
}

/// Disk of a process that dies: after the given number of operations no operation has an effect.
struct DyingDisk(Arc<AtomicI64>);

struct DyingFile {
    file: Box<dyn AppendFile>,
    left: Arc<AtomicI64>,
}

fn live(left: &AtomicI64) -> io::Result<()> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 {
        Ok(())
    } else {
        Err(io::Error::other("the process is dead"))
    }
}

impl AppendFile for DyingFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        live(&self.left)?;
        self.file.append(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        live(&self.left)?;
        self.file.sync()
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        live(&self.left)?;
        self.file.truncate(length)
    }
}

impl Disk for DyingDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        live(&self.0)?;
        SystemDisk.create_dir_all(path)
    }
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        live(&self.0)?;
        Ok(Box::new(DyingFile { file: SystemDisk.open_append(path)?, left: self.0.clone() }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        SystemDisk.read(path)
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        SystemDisk.read_at(path, offset, length)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemDisk.list(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        live(&self.0)?;
        SystemDisk.replace(path, bytes)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        live(&self.0)?;
        SystemDisk.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        live(&self.0)?;
        SystemDisk.remove_dir_all(path)
    }
    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        live(&self.0)?;
        SystemDisk.sync_tree(path)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_at_any_operation_is_no_master_and_can_be_run_again() {
    let bytes = bundle_of(&entries(30).await);
    let directory = tempfile::tempdir().unwrap();
    let alive = env(Arc::new(SystemDisk));
    let mut deaths = 0;
    let mut half = 0;
    loop {
        let data = directory.path().join(format!("data{deaths}"));
        let dying = env(Arc::new(DyingDisk(Arc::new(AtomicI64::new(deaths)))));
        let died = restore(&bytes[..], &passphrase(), &options(&data), &dying);
        if died.is_ok() {
            break;
        }
        deaths += 1;
        let config = MasterConfig { data_dir: data.clone(), ..MasterConfig::default() };
        let refused = MasterIdentity::obtain(&config, &alive).await.err().map(|error| error.to_string());
        let refused = refused.unwrap_or_else(|| panic!("a master starts after {deaths} operations"));
        if refused.contains("half restored") {
            half += 1;
            let recovered = Survivor::open(&data, env(Arc::new(SystemDisk))).err().map(|e| e.to_string());
            assert_eq!(recovered, Some(refused), "`ephor recover` takes half a master");
        }
        restore(&bytes[..], &passphrase(), &options(&data), &alive)
            .unwrap_or_else(|error| panic!("again after {deaths} operations: {error}"));
        if deaths % 8 == 0 {
            let (consensus, _) = started(&data).await;
            assert_eq!(consensus.store().len(), 30);
            consensus.shutdown().await;
        }
    }
    println!("{deaths} deaths, {half} of them half way");
    assert!(half > 15, "{half} of {deaths}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_replaces_nothing_and_a_bad_bundle_leaves_nothing() {
    let bytes = bundle_of(&entries(1500).await);
    let directory = tempfile::tempdir().unwrap();
    let env = env(Arc::new(SystemDisk));
    let taken = directory.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("node.json"), "{}").unwrap();
    let error = restore(&bytes[..], &passphrase(), &options(&taken), &env).unwrap_err().to_string();
    assert!(error.contains("not empty") && error.contains("node.json"), "{error}");
    assert_eq!(std::fs::read_to_string(taken.join("node.json")).unwrap(), "{}");
    let data = directory.path().join("data");
    let half = &bytes[..bytes.len() * 3 / 4];
    let error = restore(half, &passphrase(), &options(&data), &env).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error}");
    assert_eq!(SystemDisk.list(&data).unwrap(), Vec::<String>::new());
    restore(&bytes[..], &passphrase(), &options(&data), &env).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_many_objects_takes_its_time() {
    let objects = std::env::var("EPHOR_RESTORE_OBJECTS").map_or(2000, |text| text.parse().unwrap());
    let entries = entries(objects).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bundle.ephor");
    let begun = Instant::now();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let sink = BundleLocation::Local(file.clone()).create().await.unwrap();
    let writing = tokio::task::spawn_blocking(move || bundle::write(receiver, sink, &passphrase()));
    for entry in entries {
        sender.send(Ok(entry)).await.unwrap();
    }
    drop(sender);
    writing.await.unwrap().unwrap();
    let saved = begun.elapsed();
    let begun = Instant::now();
    let open = || std::fs::File::open(&file).unwrap();
    verify(open(), &passphrase()).unwrap();
    let verified = begun.elapsed();
    let begun = Instant::now();
    let data = directory.path().join("data");
    restore(open(), &passphrase(), &options(&data), &env(Arc::new(SystemDisk))).unwrap();
    let restored = begun.elapsed();
    let (consensus, _) = started(&data).await;
    assert_eq!(consensus.store().len(), objects);
    println!(
        "{objects} objects of 1 KiB, {} bytes: saved in {:.1} s, verified in {:.1} s, restored in {:.1} s, leads {:.1} s later",
        std::fs::metadata(&file).unwrap().len(),
        saved.as_secs_f64(),
        verified.as_secs_f64(),
        restored.as_secs_f64(),
        (begun.elapsed() - restored).as_secs_f64(),
    );
    consensus.shutdown().await;
}
