//! What no store on this machine can be faster than: an fdatasync of 1 KiB, a
//! round trip over loopback, and the same over gRPC with TLS.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::FutureExt;

use super::Setup;
use super::group::Group;
use super::load::{self, Deed, Placement};
use super::table::Line;
use crate::timing::{Figures, figures};

const BYTES: usize = 1024;

/// Figures of the machine alone.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// 1 KiB appended and made durable.
    pub sync: Figures,
    /// 1 KiB there and back over TCP, between two threads.
    pub round_trip: Figures,
}

impl Floor {
    /// What a durable write with one client takes at least: the sum of the
    /// medians.
    pub fn write(&self) -> Duration {
        self.sync.p50 + self.round_trip.p50
    }

    /// One line of text.
    pub fn describe(&self) -> String {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        format!(
            "fdatasync of 1 KiB appended: p50 {:.0} us, p99 {:.0} us; TCP round trip of 1 KiB over loopback: \
             p50 {:.0} us, p99 {:.0} us; together p50 {:.0} us",
            us(self.sync.p50),
            us(self.sync.p99),
            us(self.round_trip.p50),
            us(self.round_trip.p99),
            us(self.write()),
        )
    }
}

/// Measures the machine, each for `span`.
pub fn machine(directory: &Path, span: Duration) -> Result<Floor> {
    Ok(Floor { sync: sync(directory, span)?, round_trip: round_trip(span)? })
}

fn repeat(span: Duration, mut deed: impl FnMut() -> std::io::Result<()>) -> Result<Figures> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < span {
        let begin = Instant::now();
        deed()?;
        times.push(begin.elapsed());
    }
    Ok(figures(times, start.elapsed()))
}

fn sync(directory: &Path, span: Duration) -> Result<Figures> {
    let path = directory.join("floor");
    let mut file = File::create(&path)?;
    let bytes = [7; BYTES];
    let figures = repeat(span, || {
        file.write_all(&bytes)?;
        file.sync_data()
    });
    std::fs::remove_file(path)?;
    figures
}

fn round_trip(span: Duration) -> Result<Figures> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; BYTES];
        // Until the other side closes.
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut bytes = [7; BYTES];
    let figures = repeat(span, || {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)
    });
    drop(stream);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    figures
}

/// A call over gRPC and TLS that does nothing.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let deed: Deed = Arc::new(|client, _, _| async move { client.nothing().await }.boxed());
    let placement = Placement { name: "1 client", clients: 1, members: vec![0] };
    Ok(vec![load::line(group, setup, &placement, "a gRPC call that does nothing", vec![], &deed).await?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_measured() {
        let directory = tempfile::tempdir().unwrap();
        let floor = machine(directory.path(), Duration::from_millis(20)).unwrap();
        assert!(floor.sync.p50 > Duration::ZERO && floor.round_trip.p50 > Duration::ZERO, "{floor:?}");
        assert!(floor.write() < Duration::from_secs(1), "{floor:?}");
        assert!(!directory.path().join("floor").exists());
    }
}
