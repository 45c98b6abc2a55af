//! The load of a measurement: clients spread over the members, values that do not compress, writing a number
//! of objects, and measuring the processor time that members and load generator use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use proto_env::{Random, SystemRandom};

use super::Setup;
use super::group::Group;
use super::table::{Figure, Line, RATE, Target, Unit};
use crate::etcd::Client;
use crate::timing::{Figures, Operation, drive};
use crate::usage;

/// Divisor of a line's measured time that gives the time of its warm-up.
const WARM_UP_SHARE: u32 = 5;
/// Number of clients that [`write`] uses.
const WRITERS: usize = 128;
/// Number of failed writes after which [`write`] gives up.
const WRITE_FAILURES_MAX: u64 = 1_000;
const FAILURE_PAUSE: Duration = Duration::from_millis(20);

/// Number of clients, and the members they call.
pub struct Placement {
    /// Name in the table.
    pub name: &'static str,
    /// Number of clients.
    pub clients: usize,
    /// Positions of the members, given to the clients in turn.
    pub members: Vec<usize>,
}

/// The placements to measure: one client at the leader, one at a follower, 64 and 1,000 at all members.
pub fn placements(group: &Group, leader: usize) -> [Placement; 4] {
    let others = group.others(leader);
    let all = || vec![leader, others[0], others[1]];
    [
        Placement { name: "1 client at the leader", clients: 1, members: vec![leader] },
        Placement { name: "1 client at a follower", clients: 1, members: vec![others[0]] },
        Placement { name: "64 clients", clients: 64, members: all() },
        Placement { name: "1,000 clients", clients: 1000, members: all() },
    ]
}

/// Values of one length that differ in their first eight bytes and do not compress.
#[derive(Clone)]
pub struct Values(Arc<[u8]>);

impl Values {
    /// Values of `bytes` bytes each, at least eight.
    pub fn new(bytes: usize) -> Self {
        let mut rest = vec![0; bytes.saturating_sub(8)];
        SystemRandom.fill(&mut rest);
        Self(rest.into())
    }

    /// The value that begins with `number`.
    pub fn numbered(&self, number: u64) -> Bytes {
        let mut value = BytesMut::with_capacity(self.0.len() + 8);
        value.put_u64(number);
        value.put_slice(&self.0);
        value.freeze()
    }

    /// Decodes the number that a value begins with.
    pub fn number(value: &Bytes) -> Result<u64> {
        let number = value.get(..8).context("a value without a number")?;
        Ok(u64::from_be_bytes(number.try_into()?))
    }
}

/// An operation of a client; called with the member's client, the client's number and how many
/// times the client has called it.
pub type ClientOperation = Arc<dyn Fn(Client, usize, u64) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Measures one line: rate, latencies, and the processor time of all members
/// together per operation.
pub async fn line(
    group: &Group,
    setup: &Setup,
    placement: &Placement,
    what: &str,
    targets: Vec<Target>,
    deed: &ClientOperation,
) -> Result<Line> {
    let operation = |number: usize| -> Operation {
        let member = placement.members[number % placement.members.len()];
        let (client, deed) = (group.client(member).clone(), deed.clone());
        Box::new(move |count| deed(client.clone(), number, count))
    };
    let before = group.leader().await?;
    drive(placement.clients, setup.span / WARM_UP_SHARE, operation).await?;
    let spent = ProcessorTime::start(group)?;
    let figures = drive(placement.clients, setup.span, operation).await?;
    let spent = spent.end(group)?;
    let after = group.leader().await?;
    let what = format!("{what}, {}", placement.name);
    println!("{:<5} {what:<44} {figures}   {spent}", group.side.name());
    let mut figures = rates(figures, spent.members);
    if after.term != before.term {
        figures.push(Figure::new("elections", (after.term - before.term) as f64, Unit::Count));
        println!("{:<5} {what:<44} {} elections meanwhile", group.side.name(), after.term - before.term);
    }
    Ok(Line { what, figures, targets })
}

fn rates(figures: Figures, members: Duration) -> Vec<Figure> {
    let mut all = vec![
        Figure::new(RATE, figures.rate, Unit::PerSecond),
        Figure::time("p50", figures.p50),
        Figure::time("p99", figures.p99),
        Figure::new("CPU", members.as_secs_f64() / figures.count.max(1) as f64, Unit::Seconds),
    ];
    if figures.failed > 0 {
        all.push(Figure::new("failed", figures.failed as f64, Unit::Count));
    }
    all
}

/// Processor time used up to the start of a measurement.
pub struct ProcessorTime {
    start: Instant,
    members: Duration,
    generator: Duration,
}

impl ProcessorTime {
    /// Records the processor time used so far.
    pub fn start(group: &Group) -> Result<Self> {
        let generator = usage::processor_time(std::process::id())?;
        Ok(Self { start: Instant::now(), members: group.processor_time()?, generator })
    }

    /// Returns the processor time used since [`ProcessorTime::start`].
    pub fn end(&self, group: &Group) -> Result<ProcessorTimeUsed> {
        Ok(ProcessorTimeUsed {
            time: self.start.elapsed(),
            members: group.processor_time()?.saturating_sub(self.members),
            generator: usage::processor_time(std::process::id())?.saturating_sub(self.generator),
        })
    }
}

/// Processor time used within a period.
pub struct ProcessorTimeUsed {
    time: Duration,
    /// Processor time of all members together.
    pub members: Duration,
    generator: Duration,
}

impl std::fmt::Display for ProcessorTimeUsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cores = |spent: Duration| spent.as_secs_f64() / self.time.as_secs_f64();
        write!(f, "cores: members {:.2}, generator {:.2}", cores(self.members), cores(self.generator))
    }
}

/// Writes the values 0 to `count`, to the keys that `key` names, spread over all
/// members. Failed writes are retried.
pub async fn write<K>(group: &Group, setup: &Setup, count: u64, key: K) -> Result<()>
where
    K: Fn(u64) -> String + Clone + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let values = Values::new(setup.value_bytes);
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let client = group.clients()[number % group.clients().len()].clone();
        let (next, failed, values, key) = (next.clone(), failed.clone(), values.clone(), key.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                while let Err(error) = client.put(key(number), values.numbered(number)).await {
                    if failed.fetch_add(1, Ordering::Relaxed) == WRITE_FAILURES_MAX {
                        return Err(error.context(format!("{number} of {count} are written")));
                    }
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    match failed.load(Ordering::Relaxed) {
        0 => {}
        failed => println!("{:<5} {failed} writes failed and were done again", group.side.name()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_its_length_and_number() {
        let values = Values::new(1024);
        let value = values.numbered(7);
        assert_eq!((value.len(), Values::number(&value).unwrap()), (1024, 7));
        assert_eq!(value[8..], values.numbered(8)[8..]);
        assert!(Values::number(&Bytes::from_static(b"short")).is_err());
    }
}
