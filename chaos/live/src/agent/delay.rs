//! Delays packets, or holds them until the fault ends: the kernel hands what some peers send to this process
//! (NFQUEUE) and waits for its verdict, which is given when the packet is due, in the order of arrival. netem
//! would do the same in the kernel, but many kernels lack it. Called by `node`.
//!
//! The rule that hands packets over lets them pass when no process reads the queue: when the agent ends, its
//! delays end, and the packets it held are lost as on any network.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::packets::{self, nft};
use crate::effect::Delay;

/// Interval at which the queue is polled: its library cannot wait with a timeout.
const LOOK: Duration = Duration::from_millis(1);
/// Maximum number of waiting packets of one fault; further packets are lost.
const WAITING_MAX: u32 = 8192;
/// Number of the first queue that is used, and the number of queues.
const QUEUES: (u16, u16) = (0x8000, 0x7000);
/// Prefix of the names of all our `iptables` chains.
const CHAIN: &str = "ephor_delay_";
const TABLES: [&str; 2] = ["iptables", "ip6tables"];

/// Delays that are active on a node, by the id of their fault.
#[derive(Debug, Clone, Default)]
pub struct Delays(Arc<Mutex<BTreeMap<String, Running>>>);

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    /// Number of packets delayed so far.
    late: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Delays {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to delay packets, except those of the agent's own port.
    ///
    /// # Errors
    /// Fails with what the kernel, `nft` or `iptables` say; then nothing is delayed.
    pub fn apply(&self, id: &str, delay: &Delay, agent_port: u16) -> io::Result<()> {
        let number = queue_of(id);
        // The queue is opened before packets are handed over to it.
        let queue = open(number).map_err(|error| {
            io::Error::new(error.kind(), format!("packet queue {number} of the kernel: {error}"))
        })?;
        let (stop, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::Builder::new().name("delay".to_owned()).spawn({
            let (delay, stop, late) = (delay.clone(), stop.clone(), late.clone());
            move || close(hold(queue, &delay, &stop, &late), number)
        })?;
        self.running().insert(id.to_owned(), Running { stop, late, thread });
        hand_over(id, number, delay, agent_port).inspect_err(|_| {
            if let Err(error) = self.undo(id) {
                tracing::warn!(id, %error, "the rules of a delay that failed");
            }
        })
    }

    /// Stops a delay, lets waiting packets pass, and returns how many packets were delayed.
    ///
    /// # Errors
    /// Fails with what `nft` and `iptables` say.
    pub fn undo(&self, id: &str) -> io::Result<u64> {
        packets::undo(id)?;
        remove_chains(&chain(queue_of(id)))?;
        let Some(running) = self.running().remove(id) else { return Ok(0) };
        running.stop.store(true, Ordering::Release);
        if running.thread.join().is_err() {
            tracing::error!(id, "what delays packets has panicked");
        }
        Ok(running.late.load(Ordering::Relaxed))
    }
}

/// Removes the chains of any agent in this network namespace.
///
/// # Errors
/// Fails with what `iptables` says.
pub fn undo_all() -> io::Result<()> {
    remove_chains(CHAIN)
}

/// Returns the queue number of a fault, which is the same for an agent that is started later.
fn queue_of(id: &str) -> u16 {
    let hash = Sha256::digest(id.as_bytes());
    QUEUES.0 + u16::from_be_bytes([hash[0], hash[1]]) % QUEUES.1
}

fn chain(number: u16) -> String {
    format!("{CHAIN}{number}")
}

fn open(number: u16) -> io::Result<Queue> {
    let mut queue = Queue::open()?;
    if let Err(error) = keep_from_children() {
        tracing::warn!(%error, "programs started from here keep the packet queue open");
    }
    queue.bind(number)?;
    // The contents of the packets are not needed.
    queue.set_copy_range(number, 0)?;
    queue.set_queue_max_len(number, WAITING_MAX)?;
    // Large packets are not split; not every kernel supports that.
    if let Err(error) = queue.set_recv_gso(number, true) {
        tracing::debug!(%error, "large packets are cut up");
    }
    queue.set_nonblocking(true);
    Ok(queue)
}

/// Sets close-on-exec on all descriptors: the queue's library lets child processes inherit the queue. Such a
/// child would keep packets waiting in the queue after the agent's end, for as long as it runs.
#[allow(unsafe_code, reason = "the call touches no memory and closes nothing that this process uses")]
fn keep_from_children() -> io::Result<()> {
    // Other descriptors have close-on-exec already: the standard library sets it.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unbinds the queue by number: a child process that is being started at this moment may still have it open,
/// and packets would go on waiting in it.
fn close(mut queue: Queue, number: u16) {
    queue.set_nonblocking(false);
    if let Err(error) = queue.unbind(number) {
        tracing::warn!(%error, number, "the packet queue of the kernel");
    }
}

/// Receives packets and releases each when it is due, until `stop` is set: then releases all at once and
/// returns the queue.
fn hold(mut queue: Queue, delay: &Delay, stop: &AtomicBool, late: &AtomicU64) -> Queue {
    let mut waiting: VecDeque<(Option<Instant>, Message)> = VecDeque::new();
    loop {
        // Read before the queue is polled for the last time.
        let stopping = stop.load(Ordering::Acquire);
        loop {
            match queue.recv() {
                Ok(packet) => {
                    late.fetch_add(1, Ordering::Relaxed);
                    waiting.push_back((due(delay), packet));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "the packet queue of the kernel");
                    break;
                }
            }
        }
        let now = Instant::now();
        let over = |(due, _): &mut (Option<Instant>, Message)| stopping || due.is_some_and(|due| due <= now);
        while let Some((_, mut packet)) = waiting.pop_front_if(over) {
            packet.set_verdict(Verdict::Accept);
            if let Err(error) = queue.verdict(packet) {
                tracing::warn!(%error, "a packet is lost");
            }
        }
        if stopping {
            return queue;
        }
        std::thread::sleep(LOOK);
    }
}

/// Returns when a packet that has just arrived is due; `None` if only when the fault ends.
fn due(delay: &Delay) -> Option<Instant> {
    let latency = delay.latency_ms?;
    let jitter = delay.jitter_ms.min(latency);
    let by = rand::rng().random_range(latency - jitter..=latency.saturating_add(jitter));
    Instant::now().checked_add(Duration::from_millis(by))
}

/// Makes the kernel hand over arriving packets: with nftables, or with iptables where nftables has no queues.
fn hand_over(id: &str, number: u16, delay: &Delay, agent_port: u16) -> io::Result<()> {
    let Err(error) = nft(&["-f", "-"], &script(id, number, delay, agent_port)) else { return Ok(()) };
    let (number, chain, port) = (number.to_string(), chain(number), agent_port.to_string());
    for (tables, peers) in TABLES.iter().zip(by_family(&delay.from)) {
        if peers.is_empty() {
            continue;
        }
        let rules = |arguments: &[&str]| {
            iptables(tables, arguments)
                .map_err(|other| io::Error::other(format!("{error}; and with {tables}: {other}")))
        };
        rules(&["-N", &chain])?;
        for side in ["--dport", "--sport"] {
            rules(&["-A", &chain, "-p", "tcp", side, &port, "-j", "RETURN"])?;
        }
        rules(&["-A", &chain, "-j", "NFQUEUE", "--queue-num", &number, "--queue-bypass"])?;
        for peer in peers {
            rules(&["-I", "INPUT", "-s", &peer.to_string(), "-j", &chain])?;
        }
    }
    Ok(())
}

fn script(id: &str, number: u16, delay: &Delay, agent_port: u16) -> String {
    let rules = delay.from.iter().map(|peer| {
        let family = if peer.is_ipv4() { "ip" } else { "ip6" };
        format!("{family} saddr {peer} queue num {number} bypass")
    });
    packets::emptying(id) + &packets::filling(id, "arrive", "input", agent_port, rules)
}

fn by_family(peers: &[IpAddr]) -> [Vec<&IpAddr>; 2] {
    let (four, six) = peers.iter().partition(|peer| peer.is_ipv4());
    [four, six]
}

/// Removes all chains whose name begins with `prefix`, and the rules that jump to them.
fn remove_chains(prefix: &str) -> io::Result<()> {
    for tables in TABLES {
        let listed = match iptables(tables, &["-S"]) {
            Ok(listed) => listed,
            Err(error) if has_none(&error) => continue,
            Err(error) => return Err(error),
        };
        for line in listed.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["-A", rest @ .., target] = &words[..]
                && rest.first() == Some(&"INPUT")
                && target.starts_with(prefix)
            {
                iptables(tables, &[&["-D"], rest, &[*target]].concat())?;
            }
        }
        let chains = listed.lines().filter_map(|line| line.strip_prefix("-N "));
        for chain in chains.filter(|chain| chain.starts_with(prefix)) {
            iptables(tables, &["-F", chain])?;
            iptables(tables, &["-X", chain])?;
        }
    }
    Ok(())
}

/// Returns whether the error means that the program or table is missing, so that no chain can be there.
fn has_none(error: &io::Error) -> bool {
    let text = error.to_string();
    error.kind() == io::ErrorKind::NotFound
        || text.contains("can't initialize")
        || text.contains("does not exist")
}

/// Runs `iptables` in the `mangle` table, so that packets still pass the filters of others.
fn iptables(tables: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(tables).args(["-w", "5", "-t", "mangle"]).args(arguments).output();
    let output =
        output.map_err(|error| io::Error::new(error.kind(), format!("running {tables}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let first = message.lines().next().unwrap_or("refused without a word");
    Err(io::Error::other(format!("{tables}: {first}")))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{BorrowedFd, OwnedFd};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test in a network namespace of its own, without other traffic. Threads and programs started
    /// there are in that namespace too.
    fn alone(test: impl FnOnce() + Send + 'static) {
        // Tests run one after the other: programs of one would inherit the descriptors of another.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            test();
        });
        assert!(thread.join().is_ok());
    }

    fn sockets() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (sender, receiver)
    }

    fn received(receiver: &UdpSocket) -> u8 {
        let mut byte = [0];
        assert_eq!(receiver.recv(&mut byte).unwrap(), 1);
        byte[0]
    }

    /// Ends the queue's thread and leaves the rules in place: packets must then pass.
    fn end_without_undoing(delays: &Delays, id: &str) {
        let running = delays.running().remove(id).unwrap();
        running.stop.store(true, Ordering::Release);
        running.thread.join().unwrap();
        let (sender, receiver) = sockets();
        sender.send(&[1]).unwrap();
        assert_eq!(received(&receiver), 1);
    }

    fn delay(latency_ms: Option<u64>) -> Delay {
        Delay { from: vec!["127.0.0.1".parse().unwrap()], latency_ms, jitter_ms: 0 }
    }

    #[test]
    fn packets_are_late_in_order_until_it_is_undone() {
        alone(|| {
            let delays = Delays::default();
            delays.apply("a_1", &delay(Some(200)), 6446).unwrap();
            let (sender, receiver) = sockets();
            let begun = Instant::now();
            (0..10).for_each(|number| assert_eq!(sender.send(&[number]).unwrap(), 1));
            (0..10).for_each(|number| assert_eq!(received(&receiver), number));
            assert!(begun.elapsed() >= Duration::from_millis(200));
            assert_eq!(delays.undo("a_1").unwrap(), 10);
            assert_eq!(delays.undo("a_1").unwrap(), 0);
            sender.send(&[99]).unwrap();
            assert_eq!(received(&receiver), 99);
        });
    }

    #[test]
    fn what_is_held_arrives_when_it_is_undone() {
        alone(|| {
            let delays = Delays::default();
            delays.apply("h", &delay(None), 6446).unwrap();
            let (sender, receiver) = sockets();
            sender.send(&[1]).unwrap();
            sender.send(&[2]).unwrap();
            receiver.set_nonblocking(true).unwrap();
            assert_eq!(receiver.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            receiver.set_nonblocking(false).unwrap();
            assert_eq!(delays.undo("h").unwrap(), 2);
            assert_eq!([received(&receiver), received(&receiver)], [1, 2]);
        });
    }

    #[test]
    fn an_agent_that_crashed_holds_nothing_up_and_the_next_one_cleans_up() {
        alone(|| {
            let delays = Delays::default();
            delays.apply("c", &delay(None), 6446).unwrap();
            end_without_undoing(&delays, "c");
            let next = Delays::default();
            assert_eq!(next.undo("c").unwrap(), 0);
            assert!(!iptables("iptables", &["-S"]).unwrap_or_default().contains(CHAIN));
            assert!(!nft(&["list", "ruleset"], "").unwrap().contains("ephor_chaos_c"));
            // The queue number and the rules can be used again.
            next.apply("c", &delay(Some(0)), 6446).unwrap();
            undo_all().unwrap();
            packets::undo_all().unwrap();
            next.undo("c").unwrap();
        });
    }

    #[test]
    fn a_program_that_is_started_does_not_keep_the_queue() {
        alone(|| {
            let _queue = open(QUEUES.0).unwrap();
            let listed = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            let sockets: Vec<&str> = listed.lines().filter(|line| line.contains("socket:")).collect();
            // Standard input and error may be sockets of the test runner.
            let beyond = |line: &&str| !["0", "1", "2"].iter().any(|fd| line.contains(&format!(" {fd} -> ")));
            assert_eq!(sockets.into_iter().find(beyond), None, "{listed}");
        });
    }

    /// Reproduces what a child process has open before exec: all descriptors of this process.
    #[allow(
        unsafe_code,
        reason = "a descriptor is borrowed for one call; where it is closed meanwhile the call fails"
    )]
    fn everything_open() -> Vec<OwnedFd> {
        let names = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter_map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()).collect()
    }

    #[test]
    fn a_queue_that_somebody_still_has_open_holds_nothing_up() {
        alone(|| {
            let delays = Delays::default();
            delays.apply("o", &delay(None), 6446).unwrap();
            let kept = everything_open();
            assert!(!kept.is_empty());
            end_without_undoing(&delays, "o");
            drop(kept);
            delays.undo("o").unwrap();
        });
    }

    #[test]
    fn the_agent_stays_reachable() {
        let script = script("x", 40_000, &delay(None), 6446);
        assert!(script.contains("tcp sport 6446 accept"), "{script}");
        assert!(script.contains("arrive ip saddr 127.0.0.1 queue num 40000 bypass"), "{script}");
    }
}
