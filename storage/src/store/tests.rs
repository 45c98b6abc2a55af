//! The guarantees of the store, in memory and on disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_env::{CancellationToken, Env, TlsNetwork};
use tokio::time::timeout;

use super::*;
use crate::txn::{Command, Mutation, Precondition, Txn, TxnOutcome};
use crate::watch::{WatchClosed, WatchItem};

pub(super) fn put(key: &str, value: &str) -> Mutation {
    Mutation::Put { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(super) fn delete(key: &str) -> Mutation {
    Mutation::Delete { key: key.to_owned() }
}

pub(super) fn txn(mutations: Vec<Mutation>) -> Txn {
    Txn { preconditions: vec![], mutations }
}

/// Applies each transaction as a log entry of its own.
pub(super) struct Applier {
    pub(super) store: Arc<Store>,
    pub(super) index: u64,
    pub(super) term: u64,
}

impl Applier {
    pub(super) fn memory() -> Self {
        Self { store: Store::in_memory(Limits::default()).unwrap(), index: 0, term: 1 }
    }

    pub(super) fn command(&mut self, command: Command) -> Applied {
        self.index += 1;
        let entry = Entry { index: self.index, term: self.term, commands: vec![command], raise: 0 };
        let applied = self.index.to_le_bytes().to_vec();
        self.store.apply(vec![entry], applied).unwrap().remove(0).remove(0)
    }

    fn id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.index + 1).to_le_bytes());
        id
    }

    pub(super) fn txn(&mut self, txn: Txn) -> TxnOutcome {
        let command = Command { id: self.id(), born: self.index, fence: None, txn };
        match self.command(command) {
            Applied::Outcome(outcome) => outcome,
            Applied::Forgotten => panic!("forgotten"),
        }
    }

    pub(super) fn put(&mut self, key: &str, value: &str) -> Revision {
        match self.txn(txn(vec![put(key, value)])) {
            TxnOutcome::Committed { revisions } => revisions[0],
            other => panic!("{other:?}"),
        }
    }
}

fn keys(page: &Page) -> Vec<(String, String)> {
    let text =
        |object: &Arc<Object>| (object.key.to_string(), String::from_utf8_lossy(&object.value).into_owned());
    page.objects.iter().map(text).collect()
}

#[test]
fn every_mutation_has_a_revision_of_its_own() {
    let mut applier = Applier::memory();
    let outcome = applier.txn(txn(vec![put("/a", "1"), put("/b", "1"), delete("/a"), delete("/none")]));
    assert_eq!(outcome, TxnOutcome::Committed { revisions: vec![1, 2, 3, 4] });
    assert_eq!(applier.store.revision(), 4);
    assert!(applier.store.get("/a").is_none());
    applier.put("/b", "2");
    let object = applier.store.get("/b").unwrap();
    assert_eq!((object.create_revision, object.mod_revision), (2, 5));
}

#[test]
fn a_failed_precondition_changes_nothing_and_says_what_is_there() {
    let mut applier = Applier::memory();
    applier.put("/a", "1");
    let preconditions = vec![
        Precondition::Present("/a".into()),
        Precondition::AtRevision { key: "/a".into(), mod_revision: 7 },
    ];
    let outcome = applier.txn(Txn { preconditions, mutations: vec![put("/a", "2")] });
    assert_eq!(outcome, TxnOutcome::Failed { precondition: 1, current: Some(1), at: 1 });
    let absent = vec![Precondition::Absent("/a".into())];
    let outcome = applier.txn(Txn { preconditions: absent, mutations: vec![delete("/a")] });
    assert!(matches!(outcome, TxnOutcome::Failed { precondition: 0, current: Some(1), .. }));
    assert_eq!(applier.store.revision(), 1);
}

#[test]
fn a_resent_proposal_gets_the_first_outcome() {
    let mut applier = Applier::memory();
    let command = Command { id: [7; 16], born: 0, fence: None, txn: txn(vec![put("/a", "1")]) };
    let first = applier.command(command.clone());
    applier.put("/a", "2");
    assert_eq!(applier.command(command), first);
    assert_eq!(&applier.store.get("/a").unwrap().value[..], b"2");
}

#[test]
fn a_proposal_older_than_what_is_remembered_is_not_applied() {
    let mut applier = Applier::memory();
    let old = Command { id: [7; 16], born: 0, fence: None, txn: txn(vec![put("/old", "1")]) };
    for _ in 0..70_000 {
        applier.txn(txn(vec![]));
    }
    assert_eq!(applier.command(old), Applied::Forgotten);
    assert!(applier.store.get("/old").is_none());
}

#[test]
fn a_fenced_write_of_an_earlier_term_is_refused() {
    let mut applier = Applier::memory();
    let mut write = |term, fence| {
        applier.term = term;
        let command =
            Command { id: applier.id(), born: applier.index, fence, txn: txn(vec![put("/a", "1")]) };
        applier.command(command)
    };
    assert!(matches!(write(5, Some(5)), Applied::Outcome(TxnOutcome::Committed { .. })));
    assert_eq!(write(6, Some(5)), Applied::Outcome(TxnOutcome::Fenced { term: 6 }));
    assert!(matches!(write(6, None), Applied::Outcome(TxnOutcome::Committed { .. })));
}

#[test]
fn ranges_page_and_look_back() {
    let mut applier = Applier::memory();
    for name in ["a", "b", "c", "d"] {
        applier.put(&format!("/registry/core/pods/ns/{name}"), "1");
    }
    let at = applier.store.revision();
    applier.txn(txn(vec![
        delete("/registry/core/pods/ns/b"),
        put("/registry/core/pods/ns/c", "2"),
        put("/registry/core/pods/ns/bb", "1"),
        put("/registry/core/podz/ns/z", "1"),
    ]));
    let prefix = "/registry/core/pods/";
    let page = applier.store.range(prefix, None, 2, None).unwrap();
    assert_eq!(page.objects.len(), 2);
    assert_eq!((page.more, page.remaining, page.revision), (true, 2, 8));
    let old = applier.store.range(prefix, Some("/registry/core/pods/ns/a"), 2, Some(at)).unwrap();
    let expected = [("/registry/core/pods/ns/b", "1"), ("/registry/core/pods/ns/c", "1")];
    assert_eq!(keys(&old), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!((old.more, old.remaining, old.revision), (true, 1, 4));
    let all = applier.store.range("", None, 0, Some(at)).unwrap();
    assert_eq!(all.objects.len(), 4);
    applier.store.compact(6);
    let refused = applier.store.range(prefix, None, 0, Some(at)).unwrap_err();
    assert_eq!(refused.asked, at);
    assert!(applier.store.range(prefix, None, 0, Some(6)).is_ok());
}

async fn next_event(watch: &mut crate::Watch) -> crate::WatchEvent {
    loop {
        let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
        if let WatchItem::Event(event) = item {
            return event;
        }
    }
}

#[tokio::test]
async fn a_watch_delivers_each_event_once_in_order_from_where_it_was_asked() {
    let mut applier = Applier::memory();
    for number in 0..10 {
        applier.put(&format!("/registry/core/pods/ns/{number}"), "1");
        applier.put(&format!("/registry/core/nodes/{number}"), "1");
    }
    let mut watch = applier.store.watch("/registry/core/pods/", 4).unwrap();
    let mut all = applier.store.watch("/", 0).unwrap();
    let mut revisions = vec![];
    for _ in 0..8 {
        revisions.push(next_event(&mut watch).await.revision);
    }
    assert_eq!(revisions, vec![5, 7, 9, 11, 13, 15, 17, 19]);
    applier.txn(txn(vec![delete("/registry/core/pods/ns/3")]));
    let event = next_event(&mut watch).await;
    assert_eq!(event.revision, 21);
    assert!(event.object.is_none());
    assert_eq!(event.previous.unwrap().mod_revision, 7);
    for expected in 1..=21 {
        assert_eq!(next_event(&mut all).await.revision, expected);
    }
}

#[tokio::test]
async fn a_watch_under_a_concurrent_writer_misses_nothing() {
    let mut applier = Applier::memory();
    let store = applier.store.clone();
    let mut watch = store.watch("/registry/core/pods/", 0).unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        for number in 0..5_000 {
            applier.put(&format!("/registry/core/pods/ns/{}", number % 7), "1");
            if number % 3 == 0 {
                applier.put("/registry/core/nodes/n", "1");
            }
        }
    });
    let mut seen = 0;
    let mut last = 0;
    while seen < 5_000 {
        let event = next_event(&mut watch).await;
        assert!(event.revision > last);
        assert_eq!(event.object.unwrap().mod_revision, event.revision);
        last = event.revision;
        seen += 1;
    }
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_watch_reports_what_it_has_reached() {
    let mut applier = Applier::memory();
    let mut watch = applier.store.watch("/registry/core/pods/", 0).unwrap();
    applier.put("/registry/core/nodes/n", "1");
    assert!(matches!(watch.next().await, Ok(WatchItem::Progress(1))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_asked_reports_at_once() {
    let mut applier = Applier::memory();
    let mut watch = applier.store.watch("/registry/core/pods/", 0).unwrap();
    applier.put("/registry/core/nodes/n", "1");
    let at_once = Duration::ZERO;
    assert!(timeout(at_once, watch.next()).await.is_err());
    applier.store.ask_progress();
    assert!(matches!(timeout(at_once, watch.next()).await, Ok(Ok(WatchItem::Progress(1)))));
    // The watch has already reported this revision, so a further request adds nothing.
    applier.store.ask_progress();
    assert!(timeout(at_once, watch.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_a_store_at_rest_sleeps_between_looks() {
    let mut applier = Applier::memory();
    applier.put("/registry/core/nodes/n", "1");
    let mut watch = applier.store.watch("/registry/core/pods/", 1).unwrap();
    // On paused time, a loop that does not sleep would never let this elapse.
    let rest = tokio::time::timeout(Duration::from_secs(3600), watch.next()).await;
    assert!(rest.is_err());
}

#[tokio::test]
async fn a_watch_left_behind_by_compaction_is_told() {
    let mut applier = Applier::memory();
    for _ in 0..10 {
        applier.put("/registry/core/pods/ns/a", "1");
    }
    let mut slow = applier.store.watch("/registry/core/pods/", 2).unwrap();
    let mut quiet = applier.store.watch("/registry/core/nodes/", 2).unwrap();
    applier.store.compact(5);
    assert_eq!(slow.next().await.unwrap_err(), WatchClosed::Lagged);
    applier.put("/registry/core/nodes/n", "1");
    assert_eq!(next_event(&mut quiet).await.revision, 11);
    assert!(applier.store.watch("/registry/core/pods/", 4).is_err());
    assert!(applier.store.watch("/registry/core/pods/", 5).is_ok());
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let applier = Applier::memory();
    let mut watch = applier.store.watch("/registry/core/pods/", 0).unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    drop(applier);
    let end = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(end.unwrap_err(), WatchClosed::Stopped);
}

#[tokio::test]
async fn waiting_for_a_revision_ends_when_it_is_reached_or_in_time() {
    let mut applier = Applier::memory();
    let store = applier.store.clone();
    let waiter = tokio::spawn(async move { store.wait_for(1, Duration::from_secs(20)).await });
    applier.put("/a", "1");
    waiter.await.unwrap().unwrap();
    let late = applier.store.wait_for(9, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(late, NotReached { asked: 9, reached: 1 });
}

pub(super) fn env() -> Env {
    Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new())
}

#[test]
fn a_store_on_disk_reopens_at_the_same_revision_digest_and_outcomes() {
    let directory = tempfile::tempdir().unwrap();
    let key = DataKey::new([3; 32]);
    let open = || Store::open(directory.path(), &key, &env(), Limits::default()).unwrap();
    let mut applier = Applier { store: open(), index: 0, term: 1 };
    let large = "x".repeat(3 << 20);
    applier.put("/large", &large);
    for number in 0..200 {
        applier.put(&format!("/registry/core/pods/ns/{}", number % 50), "1");
    }
    applier.txn(txn(vec![delete("/registry/core/pods/ns/7")]));
    let digest = applier.store.digest(None).unwrap();
    let resent = Command { id: applier.id(), born: 0, fence: None, txn: txn(vec![put("/once", "1")]) };
    let first = applier.command(resent.clone());
    let revision = applier.store.revision();
    let index = applier.index;
    applier.store.sync().unwrap();
    drop(applier);

    let mut applier = Applier { store: open(), index, term: 1 };
    assert_eq!(applier.store.revision(), revision);
    assert_eq!(applier.store.applied(), index.to_le_bytes());
    assert_eq!(applier.store.get("/large").unwrap().value.len(), large.len());
    assert_eq!(applier.command(resent), first);
    assert_eq!(applier.store.revision(), revision);
    assert_eq!(applier.store.watch("/", revision - 1).err().unwrap().oldest, revision);
    applier.txn(txn(vec![delete("/once")]));
    let again = applier.store.digest(None).unwrap();
    assert_eq!(again.objects, digest.objects);
}

#[test]
fn a_snapshot_carries_everything_and_ends_watches() {
    let mut source = Applier::memory();
    for number in 0..3_000 {
        source.put(&format!("/registry/core/pods/ns/{number}"), &"v".repeat(1_000));
    }
    let resent = Command { id: [9; 16], born: 0, fence: None, txn: txn(vec![put("/once", "1")]) };
    let first = source.command(resent.clone());
    let view = source.store.view();
    let frames: Vec<Bytes> = view.frames().map(Result::unwrap).collect();
    assert!(frames.len() > 5, "{} frames", frames.len());

    let directory = tempfile::tempdir().unwrap();
    let key = DataKey::new([3; 32]);
    let open = || Store::open(directory.path(), &key, &env(), Limits::default()).unwrap();
    {
        let mut target = Applier { store: open(), index: 0, term: 1 };
        target.put("/registry/core/pods/ns/gone", "1");
        let mut watch = target.store.watch("/registry/core/pods/", 0).unwrap();
        let mut staging = target.store.stage().unwrap();
        frames.iter().for_each(|frame| staging.push(frame).unwrap());
        let staged = staging.finish().unwrap();
        assert_eq!(staged.applied(), source.store.applied());
        target.store.install(staged).unwrap();
        assert!(target.store.get("/registry/core/pods/ns/gone").is_none());
        assert_eq!(target.store.digest(None).unwrap(), source.store.digest(None).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(watch.next()).unwrap_err(), WatchClosed::Lagged);
        target.index = source.index;
        assert_eq!(target.command(resent.clone()), first);
    }
    assert_eq!(open().digest(None).unwrap(), source.store.digest(None).unwrap());
}

#[test]
fn a_snapshot_cut_short_or_changed_is_refused_and_leaves_the_store_alone() {
    let mut source = Applier::memory();
    source.put("/registry/core/pods/ns/a", "1");
    let frames: Vec<Bytes> = source.store.view().frames().map(Result::unwrap).collect();
    let mut target = Applier::memory();
    target.put("/mine", "1");
    let mut staging = target.store.stage().unwrap();
    frames[..frames.len() - 1].iter().for_each(|frame| staging.push(frame).unwrap());
    assert!(staging.finish().is_err());
    let mut staging = target.store.stage().unwrap();
    staging.push(&frames[0]).unwrap();
    assert!(staging.push(frames.last().unwrap()).is_err());
    drop(staging);
    assert!(target.store.get("/mine").is_some());
}

/// When a state's files were removed before its database was closed, the database waited for ever, and
/// blocked every write of the process.
#[test]
fn states_that_are_abandoned_or_replaced_leave_the_disk_and_hold_up_nothing() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut source = Applier::memory();
        for number in 0..20 {
            source.put(&format!("/registry/core/secrets/ns/{number}"), &"v".repeat(200_000));
        }
        let frames: Vec<Bytes> = source.store.view().frames().map(Result::unwrap).collect();
        let directory = tempfile::tempdir().unwrap();
        let states = || {
            let entries = std::fs::read_dir(directory.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("state-")).collect::<Vec<_>>()
        };
        let store = Store::open(directory.path(), &DataKey::new([3; 32]), &env(), Limits::default()).unwrap();
        let mut target = Applier { store, index: 0, term: 1 };
        for part in 1..=3 {
            let mut staging = target.store.stage().unwrap();
            frames[..part].iter().for_each(|frame| staging.push(frame).unwrap());
            // The files of the abandoned state are removed while it is still being written.
            let staged = states().into_iter().find(|name| name != "state-1").unwrap();
            std::fs::remove_dir_all(directory.path().join(staged)).unwrap();
            let _ = frames[part..].iter().try_for_each(|frame| staging.push(frame));
            drop(staging);
            assert_eq!(states(), ["state-1"]);
            target.put("/mine", "1");
        }
        let mut staging = target.store.stage().unwrap();
        frames.iter().for_each(|frame| staging.push(frame).unwrap());
        target.store.install(staging.finish().unwrap()).unwrap();
        assert_eq!(states().len(), 1);
        done.send(()).unwrap();
    });
    assert_eq!(finished.recv_timeout(Duration::from_secs(120)), Ok(()), "a state was not closed");
}

#[test]
fn digests_agree_at_one_revision_however_it_was_reached() {
    let mut one = Applier::memory();
    let mut two = Applier::memory();
    for applier in [&mut one, &mut two] {
        for number in 0..50 {
            applier.put(&format!("/k{}", number % 9), "1");
        }
    }
    two.txn(txn(vec![delete("/k1"), put("/k2", "2"), put("/new", "1")]));
    assert_ne!(one.store.digest(None).unwrap(), two.store.digest(None).unwrap());
    assert_eq!(one.store.digest(None).unwrap(), two.store.digest(Some(50)).unwrap());
}

#[test]
fn a_store_is_busy_while_an_apply_would_wait_for_a_reader_or_the_backend() {
    let applier = Applier::memory();
    let store = &applier.store;
    assert!(!store.is_busy());
    let objects = read(&store.live);
    assert!(store.is_busy());
    drop(objects);
    let history = read(&store.history);
    assert!(store.is_busy());
    drop(history);
    let rewriting = lock(&store.backend);
    assert!(store.is_busy());
    drop(rewriting);
    assert!(!store.is_busy());
}
