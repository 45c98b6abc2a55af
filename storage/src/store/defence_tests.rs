//! Damage on disk is detected, and the size on disk stays bounded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::rewrite::bloated;
use super::tests::{Applier, delete, env, put, txn};
use super::*;
use crate::backend::Batch;

fn key() -> DataKey {
    DataKey::new([3; 32])
}

fn open(directory: &Path) -> Result<Arc<Store>> {
    Store::open(directory, &key(), &env(), Limits::default())
}

/// Fills a store with a few hundred objects, small and large, some replaced, some deleted.
fn fill(store: Arc<Store>) -> Applier {
    let mut applier = Applier { store, index: 0, term: 1 };
    for number in 0..300 {
        let size = if number % 37 == 0 { 20_000 } else { 200 };
        applier.put(&format!("/registry/core/configmaps/ns/{}", number % 120), &"v".repeat(size));
        if number % 11 == 0 {
            applier.txn(txn(vec![delete(&format!("/registry/core/configmaps/ns/{}", number % 7))]));
        }
    }
    applier
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { assert!(std::fs::copy(&path, &target).is_ok()) }
    }
}

#[test]
fn the_fingerprint_is_kept_with_every_change_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let applier = fill(open(directory.path()).unwrap());
    let (index, digest) = (applier.index, applier.store.digest(None).unwrap());
    let checkpoint = applier.store.checkpoint(u64::MAX).unwrap();
    assert_eq!((checkpoint.index, checkpoint.revision), (index, digest.revision));
    // Another replica, which applied the same entries in other batches.
    let other = fill(Store::in_memory(Limits::default()).unwrap());
    for at in [1, index / 2, index] {
        assert_eq!(other.store.checkpoint(at), applier.store.checkpoint(at));
        assert_eq!(other.store.checkpoint(at).unwrap().index, at);
    }
    drop(applier);
    let store = open(directory.path()).unwrap();
    assert_eq!(store.checkpoint(u64::MAX), Some(checkpoint));
    assert_eq!(store.checkpoint(index - 1), None, "what went before is not known here");
    let frames: Vec<_> = store.view().frames().map(Result::unwrap).collect();
    let mut staging = other.store.stage().unwrap();
    frames.iter().for_each(|frame| staging.push(frame).unwrap());
    other.store.install(staging.finish().unwrap()).unwrap();
    assert_eq!(other.store.checkpoint(u64::MAX), Some(checkpoint));
}

#[test]
fn neither_names_nor_values_are_to_be_seen_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut applier = fill(open(directory.path()).unwrap());
    applier.put("/registry/core/secrets/ns/topsecret-name", "topsecret-value");
    applier.store.sync().unwrap();
    let found = files(directory.path());
    let shows = |path: &&PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        [&b"topsecret"[..], b"configmaps"].iter().any(|text| bytes.windows(text.len()).any(|at| at == *text))
    };
    assert_eq!(found.iter().find(shows), None);
    assert!(found.iter().any(|path| std::fs::metadata(path).unwrap().len() > 100_000), "{found:?}");
}

#[test]
fn what_is_removed_and_made_again_under_one_name_is_found_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let mut applier = Applier { store: open(directory.path()).unwrap(), index: 0, term: 1 };
    let names = ["/again", "/again-and-gone", "/gone", "/kept"];
    for name in names {
        applier.put(name, "old");
    }
    // All changes are in one batch, so that the disk sees only the result.
    applier.txn(txn(vec![
        delete(names[0]),
        put(names[0], "new"),
        put(names[0], "newer"),
        delete(names[1]),
        put(names[1], "new"),
        delete(names[1]),
        delete(names[2]),
        put("/short-lived", "new"),
        delete("/short-lived"),
        put(names[3], "changed"),
    ]));
    let all = |store: &Store| {
        let objects = store.range("", None, 0, None).unwrap().objects;
        let parts = |object: &Arc<Object>| {
            (object.key.to_string(), object.value.clone(), object.create_revision, object.mod_revision)
        };
        objects.iter().map(parts).collect::<Vec<_>>()
    };
    let before = all(&applier.store);
    assert_eq!(before.len(), 2);
    drop(applier);
    assert_eq!(all(&open(directory.path()).unwrap()), before);
}

#[test]
fn a_record_that_is_missing_or_old_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let home = |path: &Path| {
        let sealer = Sealer::new(&key(), "objects", env().random);
        SledHome::new(path, sealer, env().disk).unwrap()
    };
    let applier = fill(open(directory.path()).unwrap());
    let name = "/registry/core/configmaps/ns/50";
    let old = applier.store.get(name).unwrap();
    let mut applier = applier;
    applier.put(name, "newer");
    drop(applier);
    // Each replayed record was once written by this store, so it decrypts.
    let mut replayed = Batch::default();
    records::put_object(&mut replayed, &old).unwrap();
    let mut removed = Batch::default();
    records::delete_object(&mut removed, old.create_revision);
    for batch in [replayed, removed] {
        let spoilt = tempfile::tempdir().unwrap();
        copy(directory.path(), spoilt.path());
        home(spoilt.path()).open().unwrap().write(batch).unwrap();
        let error = open(spoilt.path()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("missing or old"), "{error}");
    }
    assert!(open(directory.path()).is_ok());
}

/// For any flipped byte, the state either does not open, or is the one written, or is a complete earlier
/// one from which the log continues.
#[test]
fn no_flipped_byte_makes_another_state() {
    let directory = tempfile::tempdir().unwrap();
    let mut known = BTreeMap::new();
    let applier = fill(open(directory.path()).unwrap());
    applier.store.sync().unwrap();
    for index in 0..=applier.index {
        known.extend(applier.store.checkpoint(index).map(|at| (at.index, at)));
    }
    known.insert(0, Checkpoint { index: 0, revision: 0, fingerprint: Fingerprint::default() });
    let newest = applier.index;
    drop(applier);
    let seed = std::env::var("EPHOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed} (EPHOR_SEED)");
    let flips = std::env::var("EPHOR_FLIPS").ok().and_then(|flips| flips.parse().ok()).unwrap_or(120);
    let mut random = StdRng::seed_from_u64(seed);
    let (mut refused, mut same, mut earlier) = (0, 0, 0);
    for flip in 0..flips {
        let spoilt = tempfile::tempdir().unwrap();
        copy(directory.path(), spoilt.path());
        let files = files(spoilt.path());
        // Most of the bytes are in one file; the other files are flipped too.
        let path =
            &files[if flip % 3 == 0 { flip / 3 % files.len() } else { random.random_range(0..files.len()) }];
        let mut bytes = std::fs::read(path).unwrap();
        if bytes.is_empty() {
            continue;
        }
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        std::fs::write(path, &bytes).unwrap();
        let place = format!("byte {at} of {}", path.display());
        let (sender, receiver) = std::sync::mpsc::channel();
        let target = spoilt.path().to_owned();
        std::thread::spawn(move || drop(sender.send(open(&target).map(|store| store.checkpoint(u64::MAX)))));
        match receiver.recv_timeout(Duration::from_secs(30)) {
            Err(error) => panic!("{place}: a panic or a hang ({error})"),
            Ok(Err(error)) => {
                assert_eq!(error.to_string().lines().count(), 1, "{place}: {error}");
                refused += 1;
            }
            Ok(Ok(found)) => {
                let found = found.unwrap();
                assert_eq!(known.get(&found.index), Some(&found), "{place}: another state");
                if found.index == newest { same += 1 } else { earlier += 1 }
            }
        }
    }
    println!("{flips} flips: {refused} refused, {same} opened as written, {earlier} at an earlier entry");
    assert!(refused > 0);
}

#[test]
fn a_rewrite_under_writes_keeps_every_one_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut applier = fill(open(directory.path()).unwrap());
    let store = applier.store.clone();
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let writer = std::thread::spawn(move || {
        let mut number = 0;
        while !stop.load(Ordering::Acquire) || number < 200 {
            number += 1;
            let name = format!("/registry/core/configmaps/ns/{}", number % 150);
            if number % 5 == 0 {
                applier.txn(txn(vec![delete(&name), put("/registry/core/configmaps/ns/zz", "v")]));
            } else {
                applier.put(&name, &format!("rewritten {number}"));
            }
        }
        applier
    });
    for _ in 0..5 {
        assert_eq!(store.rewrite().unwrap(), Rewritten::Done);
    }
    done.store(true, Ordering::Release);
    let applier = writer.join().unwrap();
    let (checkpoint, digest) = (store.checkpoint(u64::MAX), store.digest(None).unwrap());
    store.sync().unwrap();
    drop((applier, store));
    let states = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(states, 2, "CURRENT and one state");
    let store = open(directory.path()).unwrap();
    assert_eq!((store.checkpoint(u64::MAX), store.digest(None).unwrap()), (checkpoint, digest));
}

#[test]
fn a_rewrite_that_a_snapshot_overtakes_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let applier = fill(open(directory.path()).unwrap());
    let source = fill(Store::in_memory(Limits::default()).unwrap());
    let frames: Vec<_> = source.store.view().frames().map(Result::unwrap).collect();
    let mut staging = applier.store.stage().unwrap();
    frames.iter().for_each(|frame| staging.push(frame).unwrap());
    let staged = staging.finish().unwrap();
    let (name, copied) = applier.store.home.stage().unwrap();
    lock(&applier.store.backend).mirror = Some(copied.clone());
    applier.store.install(staged).unwrap();
    assert!(lock(&applier.store.backend).mirror.is_none(), "{name} is of a state that is gone");
    copied.retire();
    drop(copied);
    assert_eq!(applier.store.rewrite().unwrap(), Rewritten::Done);
    assert_eq!(applier.store.digest(None).unwrap(), source.store.digest(None).unwrap());
}

#[test]
fn a_store_on_disk_knows_its_size_and_a_rewritten_one_is_not_rewritten_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let applier = fill(open(directory.path()).unwrap());
    let on_disk = || files(directory.path()).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    applier.store.sync().unwrap();
    let sizes = applier.store.sizes();
    assert!(sizes.disk_bytes > 0 && sizes.disk_bytes <= on_disk(), "{sizes:?}, {} on disk", on_disk());
    let many =
        |disk_bytes, rewritten| bloated(&Sizes { disk_bytes, object_bytes: 100 << 20, ..sizes }, rewritten);
    assert!(!many(400 << 20, 0) && many(401 << 20, 0));
    // The rewrite could not make it smaller.
    assert!(!many(800 << 20, 400 << 20) && many(801 << 20, 400 << 20));
    let few = Sizes { disk_bytes: 200 << 20, object_bytes: 1, ..sizes };
    assert!(!bloated(&few, 0));
}
