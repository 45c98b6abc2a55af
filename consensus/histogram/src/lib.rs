//! The part of the crate `base2histogram` 0.2.3 that openraft uses. That crate builds lookup tables for 16
//! widths of buckets at first use, 27 MB that stay in memory, of which openraft reads 2 KB; nothing of it can
//! be configured away. `[patch.crates-io]` in the workspace's manifest puts this crate in its place.
//!
//! openraft records batch sizes here all the time and reads them only with its feature `runtime-stats`,
//! which is off. A version of openraft that uses more of the interface does not compile with this crate.

use std::fmt;
use std::marker::PhantomData;

/// Buckets of each power of two.
const PER_POWER: u64 = 4;
/// Number of buckets that 64 bits need: four values of their own, and four for each further bit.
const BUCKETS: usize = 252;

/// Counts of recorded values, by buckets whose width is at most a quarter of their smallest value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    data: PhantomData<T>,
}

/// Number of values and lower bounds of the buckets in which percentiles lie; all 0 without a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// Number of recorded values.
    pub samples: u64,
    /// 0.1th percentile.
    pub p0_1: u64,
    /// 1st percentile.
    pub p1: u64,
    /// 5th percentile.
    pub p5: u64,
    /// 10th percentile.
    pub p10: u64,
    /// 50th percentile.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p99_9: u64,
}

/// Named histograms, which openraft collects for a chart that only its feature `runtime-stats` draws.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

/// Returns the bucket that a value belongs to.
fn bucket(value: u64) -> usize {
    if value < PER_POWER {
        return value as usize;
    }
    let shift = u64::from(value.ilog2()) - 2;
    (PER_POWER * (shift + 1) + (value >> shift) % PER_POWER) as usize
}

/// Returns the smallest value of a bucket.
fn smallest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PER_POWER {
        return bucket;
    }
    (PER_POWER + bucket % PER_POWER) << (bucket / PER_POWER - 1)
}

impl<T> Histogram<T> {
    /// Makes an empty histogram.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], data: PhantomData }
    }

    /// Records a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records a value `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let held = &mut self.counts[bucket(value)];
        *held = held.saturating_add(count);
    }

    /// Returns the number of values and their percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        let at = |permille: u64| self.percentile(samples, permille);
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    /// Returns the smallest value of the bucket up to which `permille` of the values lie.
    fn percentile(&self, samples: u64, permille: u64) -> u64 {
        let wanted = (u128::from(samples) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted {
                return smallest(at);
            }
        }
        0
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(
            f,
            "samples: {samples}, p0.1: {p0_1}, p1: {p1}, p5: {p5}, p10: {p10}, p50: {p50}, p90: {p90}, \
             p99: {p99}, p99.9: {p99_9}"
        )
    }
}

impl AsciiChart {
    /// Makes a chart without a histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a histogram.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.series.push((name.into(), histogram));
        self
    }

    /// Returns the names and percentiles of the histograms, in the order in which they were added.
    pub fn percentiles(&self) -> impl Iterator<Item = (&str, PercentileStats)> {
        self.series.iter().map(|(name, histogram)| (name.as_str(), histogram.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for value in (0..5_000).chain((0..64).map(|bit| 1 << bit)).chain([u64::MAX]) {
            let at = bucket(value);
            assert!(at < BUCKETS && smallest(at) <= value, "{value} in {at}");
            assert!(at + 1 == BUCKETS || value < smallest(at + 1), "{value} in {at}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_recorded_values() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        histogram.record_n(1, 90);
        histogram.record_n(64, 9);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p50, stats.p90, stats.p99), (100, 1, 1, 1, 64));
        assert_eq!(stats.p99_9, smallest(BUCKETS - 1));
        assert!(stats.to_string().starts_with("samples: 100, p0.1: 1, "), "{stats}");
        let chart = AsciiChart::new().add("batches", histogram);
        assert_eq!(chart.percentiles().collect::<Vec<_>>(), [("batches", stats)]);
    }
}
