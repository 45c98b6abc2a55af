//! A cluster on a machine that is busy with other work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::harness::*;
use crate::*;

/// The default timers: the test checks that they suffice.
const TIMERS: [Duration; 3] = [DEFAULT_HEARTBEAT, DEFAULT_ELECTION_MIN, DEFAULT_ELECTION_MAX];
const WORKERS: usize = 2;

/// Blocks every worker of the calling runtime for `time`.
async fn block_all_workers(time: Duration) {
    let all = Arc::new(Barrier::new(WORKERS));
    let block = move || {
        let all = all.clone();
        async move {
            // Each blocked task holds another worker, and all wait until every worker is held.
            all.wait();
            let began = Instant::now();
            while began.elapsed() < time {
                std::hint::spin_loop();
            }
        }
    };
    let blocked: Vec<_> = (0..WORKERS).map(|_| tokio::spawn(block())).collect();
    for task in blocked {
        task.await.unwrap();
    }
}

#[test]
fn a_group_whose_callers_are_starved_keeps_its_leader_and_goes_on_writing() {
    let busy = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let busy = busy.unwrap();
    let cluster = busy.block_on(async {
        let mut cluster = Cluster::of(3).await;
        cluster.timers = TIMERS;
        for position in 0..3 {
            cluster.kill(position).await;
            cluster.restart(position).await;
            cluster.leader().await;
        }
        cluster.converge().await;
        cluster
    });
    let leader = cluster.running().find(|it| it.leadership().borrow().leading).unwrap().clone();
    let term = leader.leadership().borrow().term;
    let follower = cluster.running().find(|it| it.node_id() != leader.node_id()).unwrap().clone();
    // Another client writes, through both masters, on a thread that is not starved.
    let (starved, written) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (starved, written) = (starved.clone(), written.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut longest, mut count) = (Duration::ZERO, 0);
                while starved.load(Ordering::Acquire) {
                    let began = Instant::now();
                    write(if count % 2 == 0 { &leader } else { &follower }, &format!("/k{count}"), "v").await;
                    longest = longest.max(began.elapsed());
                    count += 1;
                    written.store(true, Ordering::Release);
                }
                (count, longest)
            })
        })
    };
    while !written.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    busy.block_on(block_all_workers(Duration::from_secs(2)));
    starved.store(false, Ordering::Release);
    let (count, longest) = writer.join().unwrap();
    println!("{count} writes while all workers were blocked, the longest took {longest:?}");
    assert!(count > 20, "{count} writes");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    for consensus in cluster.running() {
        assert_eq!(consensus.leadership().borrow().term, term, "there was an election");
    }
    // The cluster is dropped on the runtime on which it was started.
    busy.block_on(async { drop(cluster) });
}

/// Returns how long the machine is kept busy: `EPHOR_LOAD_SECONDS`, for measurements.
fn load_time() -> Duration {
    let seconds = std::env::var("EPHOR_LOAD_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Threads that keep processors busy, two for each core, until this is dropped.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cores * 2 {
            let stop = stop.clone();
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
        }
        Self(stop)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_core_saturated_there_is_no_election_and_a_dead_leader_is_noticed() {
    let mut cluster = Cluster::of(3).await;
    cluster.timers = TIMERS;
    for position in 0..3 {
        cluster.kill(position).await;
        cluster.restart(position).await;
        cluster.leader().await;
    }
    cluster.converge().await;
    let leader = cluster.leader().await;
    let term = cluster.consensus(leader).leadership().borrow().term;
    let end = Instant::now() + load_time();
    let hogs = Hogs::start();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let consensus = cluster.consensus(number % 3).clone();
        writers.spawn(async move {
            let mut times = vec![];
            while Instant::now() < end {
                let began = Instant::now();
                write(&consensus, &format!("/w{number}/{}", times.len()), "v").await;
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = writers.join_all().await.into_iter().flatten().collect();
    times.sort_unstable();
    let part = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{} writes: half within {:?}, 99 % within {:?}, all within {:?}",
        times.len(),
        part(50),
        part(99),
        part(100)
    );
    for consensus in cluster.running() {
        assert_eq!(consensus.leadership().borrow().term, term, "there was an election");
    }
    let killed = Instant::now();
    cluster.kill(leader).await;
    let next = wait_for("another leader", async || {
        cluster.running().any(|it| it.leadership().borrow().leading).then(|| killed.elapsed())
    });
    println!("another master leads {:?} after the leader's end", next.await);
    drop(hogs);
}
