//! Lower bounds for any store on this machine: an fdatasync of 1 KiB, a
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
use super::load::{self, ClientOperation, Placement};
use super::table::{Figure, Line};
use crate::timing::{Figures, figures};

const BYTES: usize = 1024;
/// Divisor of a line's time: this is measured often, so each measurement is shorter.
const SHARE: u32 = 5;

/// Lower bounds that the machine alone sets.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// Appending 1 KiB durably.
    pub sync: Figures,
    /// Sending 1 KiB there and back over TCP, between two threads.
    pub round_trip: Figures,
}

impl Floor {
    /// Lower bound of a durable write with one client: the sum of the medians.
    pub fn write(&self) -> Duration {
        self.sync.p50 + self.round_trip.p50
    }
}

/// Measures the machine in its present state.
pub async fn machine(setup: &Setup) -> Result<Floor> {
    let (directory, span) = (setup.directory.path().to_owned(), setup.span / SHARE);
    let measured = tokio::task::spawn_blocking(move || {
        anyhow::Ok(Floor { sync: sync(&directory, span)?, round_trip: round_trip(span)? })
    });
    measured.await?
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
        // Echo until the other side closes.
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

/// Measures the machine, and an empty call over gRPC and TLS.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let floor = machine(setup).await?;
    let figures = vec![
        Figure::time("fdatasync p50", floor.sync.p50),
        Figure::time("p99", floor.sync.p99),
        Figure::time("TCP round trip p50", floor.round_trip.p50),
        Figure::time("together p50", floor.write()),
    ];
    let what = "the machine alone: 1 KiB appended; 1 KiB over loopback".to_owned();
    let machine = Line { what, figures, targets: vec![] };
    let deed: ClientOperation = Arc::new(|client, _, _| async move { client.nothing().await }.boxed());
    let placement = Placement { name: "1 client", clients: 1, members: vec![0] };
    Ok(vec![
        machine,
        load::line(group, setup, &placement, "a gRPC call that does nothing", vec![], &deed).await?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_measured() {
        let directory = tempfile::tempdir().unwrap();
        let span = Duration::from_millis(20);
        let floor =
            Floor { sync: sync(directory.path(), span).unwrap(), round_trip: round_trip(span).unwrap() };
        assert!(floor.sync.p50 > Duration::ZERO && floor.round_trip.p50 > Duration::ZERO, "{floor:?}");
        assert!(!directory.path().join("floor").exists());
    }
}
