//! Tests what the disk promises on a real mount: needs root and `/dev/fuse`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

struct Fixture {
    // Dropped first: the disk is unmounted before its directory is removed.
    _mounted: Mounted,
    control: Control,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let socket = path("control");
        let mounted = Mounted::mount(&path("backing"), &path("disk"), &socket).unwrap();
        Self { _mounted: mounted, control: Control::connect(&socket).unwrap(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("disk").join(name)
    }

    fn sync(&self, name: &str) {
        File::open(self.path(name)).unwrap().sync_all().unwrap();
    }

    fn write(&self, name: &str, bytes: &[u8]) -> File {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Writes a file that survives every power cut.
    fn write_durably(&self, name: &str, bytes: &[u8]) {
        self.write(name, bytes).sync_all().unwrap();
        self.sync(".");
    }
}

fn names(of: &std::path::Path) -> BTreeSet<String> {
    fs::read_dir(of).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_synced_survives_and_what_is_not_may_go() {
    let mut fixture = Fixture::new();
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        fixture.write_durably("safe", &[1; 10_000]);
        // Overwritten in place, and grown, without a sync.
        let file = OpenOptions::new().write(true).open(fixture.path("safe")).unwrap();
        file.write_all_at(&[2; 6_000], 2_000).unwrap();
        file.write_all_at(&[3; 9_000], 10_000).unwrap();
        fixture.write("new", b"new").sync_all().unwrap();
        let cut = fixture.control.power_cut(seed).unwrap();
        assert_eq!((cut.files_pending, cut.names_pending), (1, 1), "{cut:?}");
        let bytes = fs::read(fixture.path("safe")).unwrap();
        assert!((10_000..=19_000).contains(&bytes.len()));
        assert!(bytes[..2_000].iter().chain(&bytes[8_000..10_000]).all(|byte| *byte == 1));
        assert!(bytes[2_000..8_000].iter().all(|byte| [1, 2].contains(byte)));
        assert!(bytes[10_000..].iter().all(|byte| [0, 3].contains(byte)));
        let touched = bytes[2_000..8_000].iter().filter(|byte| **byte == 2).count();
        let fate = if touched == 0 {
            "old"
        } else if touched == 6_000 {
            "new"
        } else {
            "torn"
        };
        seen.insert((fate, fs::read(fixture.path("new")).ok()));
        let _there = fs::remove_file(fixture.path("new"));
        fixture.sync(".");
    }
    let fates: BTreeSet<_> = seen.iter().map(|(fate, _)| *fate).collect();
    assert_eq!(fates, BTreeSet::from(["new", "old", "torn"]));
    let new: BTreeSet<_> = seen.into_iter().map(|(_, new)| new).collect();
    assert_eq!(new, BTreeSet::from([None, Some(b"new".to_vec())]));
}

#[test]
fn a_file_renamed_into_place_is_the_old_or_the_new_one_if_it_was_synced_and_else_may_be_empty() {
    let mut fixture = Fixture::new();
    for synced in [true, false] {
        let mut seen = BTreeSet::new();
        for seed in 0..60 {
            fixture.write_durably("current", b"old");
            let file = fixture.write("current.new", b"new");
            if synced {
                file.sync_all().unwrap();
            }
            fs::rename(fixture.path("current.new"), fixture.path("current")).unwrap();
            fixture.control.power_cut(seed).unwrap();
            seen.insert(String::from_utf8(fs::read(fixture.path("current")).unwrap()).unwrap());
        }
        assert!(seen.contains("old") && seen.contains("new"), "{seen:?}");
        assert_eq!(synced, seen.len() == 2, "{seen:?}");
    }
}

#[test]
fn names_come_back_in_the_order_they_went_and_directories_are_for_themselves() {
    let mut fixture = Fixture::new();
    let mut trees = BTreeSet::new();
    for seed in 0..80 {
        for name in ["a", "b"] {
            fs::create_dir(fixture.path(name)).unwrap();
        }
        fixture.sync(".");
        fixture.write("a/1", b"1").sync_all().unwrap();
        fixture.sync("a");
        // Not synced from here on: a move out of `a`, and two files created in `a` in order.
        fs::rename(fixture.path("a/1"), fixture.path("b/1")).unwrap();
        fixture.write("a/2", b"");
        fixture.write("a/3", b"");
        fs::remove_file(fixture.path("b/1")).unwrap();
        fixture.control.power_cut(seed).unwrap();
        let (a, b) = (names(&fixture.path("a")), names(&fixture.path("b")));
        assert!(!(a.contains("1") && b.contains("1")), "moved, not copied");
        assert!(!a.contains("3") || a.contains("2"), "{a:?}");
        assert!(!(a.contains("1") && a.contains("2")), "the move was before: {a:?}");
        trees.insert((a, b));
        fs::remove_dir_all(fixture.path("a")).unwrap();
        fs::remove_dir_all(fixture.path("b")).unwrap();
        fixture.sync(".");
    }
    // Seven trees are possible: file 1 in a, in b or gone; files 2 and 3 only if 1 is not in a.
    assert!(trees.len() >= 5, "{trees:?}");
}

#[test]
fn what_was_open_before_a_power_cut_is_of_the_past() {
    let mut fixture = Fixture::new();
    let file = fixture.write("file", b"one");
    file.sync_all().unwrap();
    fixture.sync(".");
    fixture.control.power_cut(7).unwrap();
    let error = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(error(file.write_all_at(b"two", 0)), Some(Errno::EIO as i32));
    assert_eq!(error(file.sync_all()), Some(Errno::EIO as i32));
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"one");
}

#[test]
fn removed_files_are_there_for_who_has_them_open_and_gone_for_good_when_synced() {
    let mut fixture = Fixture::new();
    fixture.write_durably("file", b"content");
    let file = File::open(fixture.path("file")).unwrap();
    fs::remove_file(fixture.path("file")).unwrap();
    fixture.sync(".");
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"content");
    drop(file);
    fixture.control.power_cut(1).unwrap();
    assert_eq!(names(&fixture.path(".")), BTreeSet::new());
    let backing = fixture.directory.path().join("backing");
    let trash = backing.join(names(&backing).pop_first().unwrap());
    assert_eq!(names(&trash), BTreeSet::new(), "nothing is kept for ever");
}

#[test]
fn faults_strike_and_are_counted_and_end() {
    let mut fixture = Fixture::new();
    fixture.write_durably("file", b"12345");
    let file = OpenOptions::new().read(true).write(true).open(fixture.path("file")).unwrap();
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    fixture.control.set(DiskFault::Enospc).unwrap();
    assert_eq!(code(file.write_all_at(b"67890", 5)), Errno::ENOSPC as i32);
    assert_eq!(code(File::create(fixture.path("other")).map(drop)), Errno::ENOSPC as i32);
    file.write_all_at(b"54321", 0).unwrap();
    file.sync_all().unwrap();
    fixture.control.set(DiskFault::Eio).unwrap();
    assert_eq!(code(file.write_all_at(b"1", 0)), Errno::EIO as i32);
    assert_eq!(code(file.read_exact_at(&mut [0], 0)), Errno::EIO as i32);
    assert_eq!(code(file.sync_all()), Errno::EIO as i32);
    fixture.control.set(DiskFault::SlowFsync(Duration::from_millis(200))).unwrap();
    let start = Instant::now();
    file.write_all_at(b"12345", 0).unwrap();
    assert!(start.elapsed() < Duration::from_millis(150));
    file.sync_data().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    fixture.control.clear().unwrap();
    file.sync_data().unwrap();
    let counts = fixture.control.counts().unwrap();
    assert_eq!((counts.enospc, counts.eio, counts.slow_fsync), (2, 3, 1), "{counts:?}");
    assert_eq!(counts.pending_bytes, 0);
}

#[test]
fn a_sync_after_a_failed_one_does_not_bring_back_what_that_one_lost() {
    let mut fixture = Fixture::new();
    let mut kept = 0;
    for seed in 0..20 {
        fixture.write_durably("file", b"old");
        let file = OpenOptions::new().write(true).open(fixture.path("file")).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        fixture.control.set(DiskFault::Eio).unwrap();
        assert!(file.sync_all().is_err());
        fixture.control.clear().unwrap();
        file.sync_all().unwrap();
        fixture.control.power_cut(seed).unwrap();
        kept += u32::from(fs::read(fixture.path("file")).unwrap() == b"new");
    }
    assert_eq!(kept, 0);
}
