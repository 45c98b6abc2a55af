//! The cost of history and lists: history is bounded in bytes, and lists count the remaining objects
//! without a walk.

use std::time::Instant;

use super::tests::*;
use super::*;

fn pod(number: usize) -> String {
    format!("/registry/core/pods/ns/{number:06}")
}

#[test]
fn history_is_bounded_in_bytes_and_every_replica_forgets_the_same() {
    let limits = Limits { history_bytes: 1 << 20, ..Limits::default() };
    let (one, other) = (Store::in_memory(limits).unwrap(), Store::in_memory(limits).unwrap());
    let entry = |index: u64| {
        // Objects of many sizes, replaced and deleted.
        let key = format!("/registry/core/k{}/{}", index % 5, index % 70);
        let mutation = match index % 13 {
            0 => delete(&key),
            _ => put(&key, &"v".repeat(usize::try_from(index * 37 % 4000).unwrap())),
        };
        let command = crate::Command { id: [0; 16], born: index, fence: None, txn: txn(vec![mutation]) };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&index.to_le_bytes());
        Entry { index, term: 1, commands: vec![crate::Command { id, ..command }], raise: 0 }
    };
    for index in 1..=6000 {
        one.apply(vec![entry(index)], vec![]).unwrap();
    }
    // The other replica was behind and applies many entries at once.
    let mut index = 0;
    while index < 6000 {
        let last = (index + 97).min(6000);
        other.apply((index + 1..=last).map(entry).collect(), vec![]).unwrap();
        index = last;
    }
    let sizes = one.sizes();
    assert_eq!(sizes, Sizes { disk_bytes: sizes.disk_bytes, ..other.sizes() });
    assert!(sizes.compacted > 4000, "{sizes:?}");
    // The remaining history can be watched, the forgotten part is refused.
    assert!(one.watch("/registry/core/k1/", sizes.compacted).is_ok());
    assert!(one.watch("/registry/core/k1/", sizes.compacted / 2).is_err());
    let (events, bytes) = read(&one.history).size();
    assert!(bytes <= 1 << 20 && events > 100, "{events} events of {bytes} bytes");
    // A small object counts with the overhead of keeping it.
    for index in 6001..=16_000 {
        let mut small = entry(index);
        small.commands[0].txn = txn(vec![put("/registry/core/small/a", "v")]);
        one.apply(vec![small], vec![]).unwrap();
    }
    let (events, _) = read(&one.history).size();
    assert!(events < 2000, "{events}");
}

#[test]
fn what_history_took_is_given_back() {
    let mut applier = Applier::memory();
    for _ in 0..20_000 {
        applier.put("/registry/core/pods/ns/a", "1");
    }
    assert!(read(&applier.store.history).capacity() > 40_000);
    applier.store.compact(applier.store.revision());
    assert!(read(&applier.store.history).capacity() < 1000);
    assert_eq!(read(&applier.store.history).size(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_load_leaves_in_history_goes_within_a_minute() {
    let mut applier = Applier::memory();
    let compacting = tokio::spawn(applier.store.clone().compact_periodically());
    tokio::time::sleep(Duration::from_secs(61)).await;
    let value = "v".repeat(4000);
    let first = applier.store.revision();
    for number in 0..10_000 {
        applier.put(&pod(number % 10), &value);
    }
    let last = applier.store.revision();
    tokio::time::sleep(Duration::from_secs(25)).await;
    // A watch that was away for some seconds goes on.
    assert!(applier.store.watch("/registry/core/pods/", first).is_ok());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (events, bytes) = read(&applier.store.history).size();
    assert!(bytes <= 16 << 20 && events > 2000, "{events} events of {bytes} bytes");
    assert!(applier.store.watch("/registry/core/pods/", first).is_err());
    assert!(applier.store.watch("/registry/core/pods/", last - 2000).is_ok());
    // What is little stays for the whole time.
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(applier.store.watch("/registry/core/pods/", last - 2000).is_ok());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(read(&applier.store.history).size(), (0, 0));
    compacting.abort();
}

#[test]
fn pages_of_the_present_and_of_the_past_say_what_remains() {
    let mut applier = Applier::memory();
    for number in 0..3000 {
        applier.put(&pod(number), "1");
    }
    let at = applier.store.revision();
    let then = applier.store.range("/registry/core/pods/", None, 0, None).unwrap();
    assert_eq!((then.objects.len(), then.more, then.remaining), (3000, false, 0));
    // Objects before and after the page are deleted, created and changed.
    for number in (0..3000).step_by(7) {
        applier.txn(txn(vec![delete(&pod(number)), put(&format!("{}x", pod(number)), "1")]));
    }
    for number in (0..3000).step_by(11) {
        applier.put(&format!("{}y", pod(number)), "1");
        applier.put(&pod(number), "2");
    }
    for past in [Some(at), None] {
        let whole = applier.store.range("/registry/core/pods/", None, 0, past).unwrap().objects;
        let (mut seen, mut from) = (0, None::<String>);
        loop {
            let page = applier.store.range("/registry/core/pods/", from.as_deref(), 500, past).unwrap();
            let keys =
                |objects: &[Arc<Object>]| -> Vec<_> { objects.iter().map(|it| it.key.clone()).collect() };
            assert_eq!(keys(&page.objects), keys(&whole[seen..seen + page.objects.len()]));
            seen += page.objects.len();
            assert_eq!(page.remaining, (whole.len() - seen) as u64);
            assert_eq!(page.more, seen < whole.len());
            let Some(last) = page.objects.last().filter(|_| page.more) else { break };
            from = Some(last.key.to_string());
        }
        assert_eq!(seen, whole.len());
    }
    let then_keys: Vec<_> = then.objects.iter().map(|object| object.key.clone()).collect();
    let past = applier.store.range("/registry/core/pods/", None, 0, Some(at)).unwrap();
    assert_eq!(past.objects.iter().map(|object| object.key.clone()).collect::<Vec<_>>(), then_keys);
}

/// Prints how long a page of a long list takes; it must not cost a walk over all objects.
#[test]
fn a_page_of_a_long_list_does_not_walk_over_the_rest() {
    let count = 100_000;
    let store = Store::in_memory(Limits::default()).unwrap();
    let mutations = (0..count).map(|number| put(&pod(number), "1")).collect();
    let command = crate::Command { id: [1; 16], born: 0, fence: None, txn: txn(mutations) };
    store.apply(vec![Entry { index: 1, term: 1, commands: vec![command], raise: 0 }], vec![]).unwrap();
    let fastest = |work: &dyn Fn() -> u64| {
        let time = || {
            let began = Instant::now();
            std::hint::black_box(work());
            began.elapsed()
        };
        (0..20).map(|_| time()).min().unwrap()
    };
    let page = fastest(&|| store.range("/registry/core/pods/", None, 10, None).unwrap().remaining);
    let walk = fastest(&|| {
        read(&store.live).objects.keys().filter(|key| key.starts_with("/registry")).count() as u64
    });
    println!("a page of 10 of {count} objects: {page:?}; a walk over all of them: {walk:?}");
    assert!(page * 5 < walk, "{page:?} {walk:?}");
}
