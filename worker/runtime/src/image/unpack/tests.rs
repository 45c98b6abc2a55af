//! Unpacks layers as real images have them, and malicious layers. Needs root.

use std::io::Write;

use tar::{Builder, Header};

use super::*;
use crate::image::content::digest_of;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: unpacking a layer changes the root directory of a thread and needs root");
    }
    root
}

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o4755 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000);
        // Written directly, because the builder refuses names that lead outside.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).expect("append to memory");
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", data)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("finish in memory")
    }
}

struct Unpacking {
    directory: tempfile::TempDir,
    result: Result<Unpacked, ImageError>,
}

impl Unpacking {
    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("target").join(path)
    }
}

fn run(tar: Vec<u8>, parents: &[PathBuf], limits: &ImageLimits) -> Unpacking {
    let directory = tempfile::tempdir().expect("temporary directory");
    let target = directory.path().join("target");
    fs::create_dir(&target).expect("target");
    let mut blob = tempfile::tempfile().expect("blob");
    blob.write_all(&tar).expect("write blob");
    std::io::Seek::rewind(&mut blob).expect("rewind");
    let budget = Budget::new(&target, limits.image_bytes, limits.image_entries).expect("budget");
    let result = unpack(blob, &target, parents, &digest_of(&tar), limits, &Arc::new(budget));
    Unpacking { directory, result }
}

#[test]
fn owners_modes_times_and_links_are_kept() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .entry(EntryType::Directory, "d/", "", b"")
        .file("d/f", b"text")
        .entry(EntryType::Link, "d/hard", "d/f", b"")
        .entry(EntryType::Symlink, "d/soft", "/d/f", b"");
    let unpacked = run(tar.bytes(), &[], &ImageLimits::default());
    unpacked.result.as_ref().expect("a good layer");
    let file = fs::metadata(unpacked.path("d/f")).expect("the file");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.nlink()),
        (7, 8, 0o4755, 1_000_000, 2)
    );
    let directory = fs::metadata(unpacked.path("d")).expect("the directory");
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o750, 1_000_000));
    assert_eq!(fs::read_link(unpacked.path("d/soft")).expect("the link"), Path::new("/d/f"));
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file("a/.wh.gone", b"").file("b/.wh..wh..opq", b"");
    let unpacked = run(tar.bytes(), &[], &ImageLimits::default());
    unpacked.result.as_ref().expect("a good layer");
    let gone = fs::symlink_metadata(unpacked.path("a/gone")).expect("the whiteout");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(xattr::get(unpacked.path("b"), OPAQUE).expect("attributes").as_deref(), Some(b"y".as_slice()));
}

#[test]
fn a_hard_link_may_name_a_file_of_a_lower_layer() {
    if !is_root() {
        return;
    }
    let lower = run(Tar::new().file("d/f", b"below").bytes(), &[], &ImageLimits::default());
    fs::set_permissions(lower.path("d"), fs::Permissions::from_mode(0o700)).expect("mode");
    let upper = Tar::new().entry(EntryType::Link, "d/g", "d/f", b"").bytes();
    let upper = run(upper, &[lower.path("")], &ImageLimits::default());
    upper.result.as_ref().expect("a good layer");
    assert_eq!(fs::read(upper.path("d/g")).expect("the copy"), b"below");
    let mode = fs::metadata(upper.path("d")).expect("its directory").mode();
    assert_eq!(mode & 0o7777, 0o700, "a directory that is not listed keeps its lower mode");
}

/// Lower layers lie outside of the thread's root directory, which therefore does not
/// stop `..` in their links.
#[test]
fn nothing_is_read_outside() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir_in("/tmp").expect("temporary directory");
    fs::write(outside.path().join("secret"), b"of the host").expect("a file of the host");
    let up = "../".repeat(12);
    let link = format!("{up}{}", outside.path().strip_prefix("/").expect("absolute").display());
    let lower = Tar::new().entry(EntryType::Symlink, "x", &link, b"").bytes();
    let lower = run(lower, &[], &ImageLimits::default());
    lower.result.as_ref().expect("a link may lead anywhere");
    assert_eq!(fs::read(lower.path("x/secret")).expect("it leads there"), b"of the host");
    let loot = Tar::new().entry(EntryType::Link, "loot", "x/secret", b"").bytes();
    let loot = run(loot, &[lower.path("")], &ImageLimits::default());
    assert!(loot.result.is_err() && !loot.path("loot").exists(), "a file of the host was copied");
}

#[test]
fn nothing_is_written_outside() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().expect("temporary directory");
    let host = outside.path().to_str().expect("a plain path");
    let escape = Tar::new().entry(EntryType::Symlink, "out", host, b"").file("out/f", b"x").bytes();
    let escape = run(escape, &[], &ImageLimits::default());
    assert!(!outside.path().join("f").exists(), "a link led out: {:?}", escape.result);
    let dots = run(Tar::new().file("../../f", b"x").bytes(), &[], &ImageLimits::default());
    assert!(dots.result.is_err());
    let whiteout = run(Tar::new().file(".wh...", b"").bytes(), &[], &ImageLimits::default());
    assert!(whiteout.result.is_err());
}

#[test]
fn a_layer_larger_than_allowed_is_refused() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file("zeros", &vec![0; 1 << 20]).bytes();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&tar).expect("compress");
    let packed = packed.finish().expect("compress");
    assert!(packed.len() < 10_000);
    let small = ImageLimits { layer_bytes: 100_000, ..ImageLimits::default() };
    let error = run(packed, &[], &small).result.expect_err("a bomb was unpacked").to_string();
    assert!(error.contains("larger than allowed"), "{error}");
    let few = ImageLimits { layer_entries: 1, ..ImageLimits::default() };
    assert!(run(Tar::new().file("a", b"").file("b", b"").bytes(), &[], &few).result.is_err());
}

#[test]
fn a_layer_that_is_not_what_it_should_be_is_refused() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut blob = tempfile::tempfile().expect("blob");
    blob.write_all(&Tar::new().file("a", b"").bytes()).expect("write blob");
    std::io::Seek::rewind(&mut blob).expect("rewind");
    let other = digest_of(b"something else");
    let budget = Arc::new(Budget::new(directory.path(), 1 << 20, 10).expect("budget"));
    let outcome = unpack(blob, directory.path(), &[], &other, &ImageLimits::default(), &budget);
    assert!(matches!(outcome, Err(ImageError::DigestMismatch { .. })), "{outcome:?}");
}

fn small() -> ImageLimits {
    ImageLimits { image_bytes: 1 << 20, image_entries: 100, ..ImageLimits::default() }
}

fn refusal(unpacking: &Unpacking) -> String {
    match &unpacking.result {
        Err(ImageError::TooLarge(text)) => text.clone(),
        other => panic!("not refused as too large: {other:?}"),
    }
}

/// An archive of a few hundred bytes that announces a sparse file of gigabytes.
#[test]
fn a_sparse_file_counts_with_its_whole_size() {
    if !is_root() {
        return;
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("sparse").expect("a short name");
    header.set_mode(0o644);
    header.set_size(1);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    let octal = |field: &mut [u8; 12], value: u64| {
        field.copy_from_slice(format!("{value:011o}\0").as_bytes());
    };
    let length: u64 = 4 << 30;
    octal(&mut gnu.realsize, length);
    octal(&mut gnu.sparse[0].offset, length - 1);
    octal(&mut gnu.sparse[0].numbytes, 1);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, &b"x"[..]).expect("append to memory");
    let unpacking = run(builder.into_inner().expect("finish"), &[], &small());
    let text = refusal(&unpacking);
    assert!(text.contains("the image is larger than 1048576 bytes"), "{text}");
    let written = fs::metadata(unpacking.path("sparse")).map_or(0, |found| found.len());
    assert!(written <= 1 << 20, "{written} bytes were written");
}

#[test]
fn copies_of_a_lower_layers_file_count() {
    if !is_root() {
        return;
    }
    let lower = run(Tar::new().file("f", &vec![7; 300 << 10]).bytes(), &[], &ImageLimits::default());
    lower.result.as_ref().expect("a good layer");
    let mut tar = Tar::new();
    for copy in 0..10 {
        tar = tar.entry(EntryType::Link, &format!("copy-{copy}"), "f", b"");
    }
    let text = refusal(&run(tar.bytes(), &[lower.path("")], &small()));
    assert!(text.contains("copy-3"), "{text}");
}

/// The `tar` crate keeps whole extension headers in memory, for any kind of entry.
#[test]
fn headers_that_fill_the_memory_are_refused() {
    if !is_root() {
        return;
    }
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(16 << 20);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, std::io::repeat(b'x').take(16 << 20)).expect("append to memory");
        let tar = Tar(builder).file("a", b"").bytes();
        let text = refusal(&run(tar, &[], &ImageLimits::default()));
        assert!(text.contains("the headers of an entry are larger"), "{text}");
    }
}

#[test]
fn content_that_nobody_takes_is_no_header() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().entry(EntryType::Directory, "d", "", &vec![0; 8 << 20]).file("d/f", b"text").bytes();
    let unpacking = run(tar, &[], &ImageLimits::default());
    unpacking.result.as_ref().expect("odd, but no bomb");
    assert_eq!(fs::read(unpacking.path("d/f")).expect("the file"), b"text");
}

#[test]
fn files_without_content_count_too() {
    if !is_root() {
        return;
    }
    let mut tar = Tar::new();
    for file in 0..101 {
        tar = tar.file(&format!("f{file}"), b"");
    }
    let text = refusal(&run(tar.bytes(), &[], &small()));
    assert!(text.contains("more than 100 files"), "{text}");
}
