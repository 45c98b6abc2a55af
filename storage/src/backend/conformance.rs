//! The conformance suite that every backend passes.

#![cfg(test)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proto_env::{SystemDisk, SystemRandom};

use super::memory::MemoryHome;
use super::sled::SledHome;
use super::{Backend, Batch, Home, Table};
use crate::crypto::{DataKey, Sealer};

type Records = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

fn records(backend: &dyn Backend) -> Records {
    let mut records = Records::new();
    let mut visit = |table, key: &[u8], value| {
        assert!(records.insert((table, key.to_vec()), value).is_none(), "a record came twice");
        Ok(())
    };
    backend.load(&mut visit).unwrap();
    records
}

fn put(backend: &dyn Backend, table: Table, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(table, key.to_vec(), value.to_vec());
    backend.write(batch).unwrap();
}

/// Runs every check over a home that `reopen` opens again after each drop.
fn suite(reopen: impl Fn() -> Box<dyn Home>) {
    records_survive_reopening(&reopen);
    a_record_that_shrinks_and_grows_is_whole_and_leaves_nothing_behind(&reopen);
    a_batch_applies_in_order(&reopen);
    keys_that_begin_alike_are_told_apart(&reopen);
    a_staged_state_is_adopted_or_discarded(&reopen);
}

fn records_survive_reopening(reopen: &impl Fn() -> Box<dyn Home>) {
    let large = vec![7; 3 * 1024 * 1024];
    {
        let backend = reopen().open().unwrap();
        put(backend.as_ref(), Table::Objects, b"/a", b"1");
        put(backend.as_ref(), Table::Recent, b"/a", b"2");
        put(backend.as_ref(), Table::Objects, b"/large", &large);
        put(backend.as_ref(), Table::Objects, b"", b"");
        backend.sync().unwrap();
    }
    let records = records(reopen().open().unwrap().as_ref());
    assert_eq!(records.len(), 4);
    assert_eq!(records[&(Table::Objects, b"/a".to_vec())], b"1");
    assert_eq!(records[&(Table::Recent, b"/a".to_vec())], b"2");
    assert_eq!(records[&(Table::Objects, b"/large".to_vec())], large);
}

fn a_record_that_shrinks_and_grows_is_whole_and_leaves_nothing_behind(reopen: &impl Fn() -> Box<dyn Home>) {
    let home = reopen();
    let (_, backend) = home.stage().unwrap();
    for bytes in [0, 1, 12_288, 10, 4_096, 4_000, 40_000, 0] {
        let value = vec![bytes as u8; bytes];
        // Twice in one batch, the first time larger.
        let mut batch = Batch::default();
        batch.put(Table::Objects, b"/a".to_vec(), vec![1; 50_000]);
        batch.put(Table::Objects, b"/a".to_vec(), value.clone());
        backend.write(batch).unwrap();
        assert_eq!(records(backend.as_ref()), Records::from([((Table::Objects, b"/a".to_vec()), value)]));
    }
    let mut batch = Batch::default();
    batch.delete(Table::Objects, b"/a".to_vec());
    backend.write(batch).unwrap();
    assert!(records(backend.as_ref()).is_empty());
}

fn a_batch_applies_in_order(reopen: &impl Fn() -> Box<dyn Home>) {
    let backend = reopen().open().unwrap();
    let mut batch = Batch::default();
    batch.put(Table::Meta, b"x".to_vec(), b"1".to_vec());
    batch.delete(Table::Meta, b"x".to_vec());
    batch.delete(Table::Meta, b"y".to_vec());
    batch.put(Table::Meta, b"y".to_vec(), b"2".to_vec());
    batch.delete(Table::Objects, b"/a".to_vec());
    backend.write(batch).unwrap();
    let records = records(backend.as_ref());
    assert!(!records.contains_key(&(Table::Meta, b"x".to_vec())));
    assert_eq!(records[&(Table::Meta, b"y".to_vec())], b"2");
    assert!(!records.contains_key(&(Table::Objects, b"/a".to_vec())));
    backend.sync().unwrap();
}

fn keys_that_begin_alike_are_told_apart(reopen: &impl Fn() -> Box<dyn Home>) {
    let home = reopen();
    let (_, backend) = home.stage().unwrap();
    let keys: [&[u8]; 5] = [b"", b"\0\0\0\0", b"\0\0\0\x01", b"\0\0\0\0\0\0\0\x01", &[7; 255]];
    let large = vec![7; 20_000];
    keys.iter().for_each(|key| put(backend.as_ref(), Table::Objects, key, &large));
    let found = records(backend.as_ref());
    assert!(keys.iter().all(|key| found[&(Table::Objects, key.to_vec())] == large));
    assert_eq!(found.len(), keys.len());
}

fn a_staged_state_is_adopted_or_discarded(reopen: &impl Fn() -> Box<dyn Home>) {
    {
        let home = reopen();
        let current = home.open().unwrap();
        put(current.as_ref(), Table::Meta, b"who", b"old");
        current.sync().unwrap();
        let (_, staged) = home.stage().unwrap();
        put(staged.as_ref(), Table::Meta, b"who", b"abandoned");
        staged.sync().unwrap();
    }
    {
        let home = reopen();
        let current = home.open().unwrap();
        assert_eq!(records(current.as_ref())[&(Table::Meta, b"who".to_vec())], b"old");
        let (name, staged) = home.stage().unwrap();
        put(staged.as_ref(), Table::Meta, b"who", b"new");
        staged.sync().unwrap();
        home.adopt(&name).unwrap();
    }
    let records = records(reopen().open().unwrap().as_ref());
    assert_eq!(records.len(), 1);
    assert_eq!(records[&(Table::Meta, b"who".to_vec())], b"new");
}

#[test]
fn memory_conforms() {
    let home = MemoryHome::default();
    suite(|| Box::new(home.clone()));
}

#[test]
fn memory_loses_what_was_not_synced() {
    let home = MemoryHome::default();
    let backend = home.open().unwrap();
    put(backend.as_ref(), Table::Meta, b"a", b"1");
    backend.sync().unwrap();
    put(backend.as_ref(), Table::Meta, b"b", b"2");
    home.power_loss();
    assert_eq!(records(home.open().unwrap().as_ref()).len(), 1);
}

#[test]
fn sled_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let key = DataKey::generate(&SystemRandom);
    suite(|| {
        let sealer = Sealer::new(&key, "objects", Arc::new(SystemRandom));
        Box::new(SledHome::new(dir.path(), sealer, Arc::new(SystemDisk)).unwrap())
    });
}

#[test]
fn sled_leaves_no_piece_of_what_an_earlier_process_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let key = DataKey::generate(&SystemRandom);
    let open = || {
        let sealer = Sealer::new(&key, "objects", Arc::new(SystemRandom));
        SledHome::new(dir.path(), sealer, Arc::new(SystemDisk)).unwrap().open().unwrap()
    };
    for loaded_first in [true, false] {
        put(open().as_ref(), Table::Objects, b"/a", &[1; 50_000]);
        let backend = open();
        if loaded_first {
            assert_eq!(records(backend.as_ref()).len(), 1);
        }
        put(backend.as_ref(), Table::Objects, b"/a", b"small");
        let small = Records::from([((Table::Objects, b"/a".to_vec()), b"small".to_vec())]);
        assert_eq!(records(backend.as_ref()), small, "loaded first: {loaded_first}");
    }
}

#[test]
fn sled_shows_no_values_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let sealer = Sealer::new(&DataKey::generate(&SystemRandom), "objects", Arc::new(SystemRandom));
    let home = SledHome::new(dir.path(), sealer, Arc::new(SystemDisk)).unwrap();
    let backend = home.open().unwrap();
    put(backend.as_ref(), Table::Objects, b"/small", b"topsecretvalue");
    put(backend.as_ref(), Table::Objects, b"/large", &b"topsecretvalue".repeat(100_000));
    backend.sync().unwrap();
    let mut stack = vec![dir.path().to_owned()];
    let mut bytes_seen = 0;
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            // Large values are cut into pieces: no page becomes a file of its own.
            let blobs = path.ends_with("blobs");
            assert!(!blobs || std::fs::read_dir(&path).unwrap().next().is_none(), "{path:?} is not empty");
            stack.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes_seen += bytes.len();
        assert!(!bytes.windows(9).any(|window| window == b"topsecret"), "plain text in {path:?}");
    }
    assert!(bytes_seen > 1_000_000);
}
