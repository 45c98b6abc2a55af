//! A histogram of latencies with logarithmic buckets. The runners record into it; the report formats read it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::micros;

/// Upper bounds within a decade, in tenths of its begin; neighbouring bounds differ by two thirds at most.
const STEPS: [u64; 6] = [10, 15, 20, 30, 50, 70];
/// Number of decades, from 10 us to 100 s.
const DECADES: u32 = 7;

/// Histogram of latencies, as bounds in microseconds with counts. A latency is counted under the smallest
/// bound that is not below it: 10 us, 15, 20, 30, 50, 70, 100 and so on to 70 s; longer ones under
/// `u64::MAX`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latency(Vec<(u64, u64)>);

impl Latency {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let micros = micros::of(latency);
        let bound = bounds().find(|bound| *bound >= micros).unwrap_or(u64::MAX);
        match self.0.binary_search_by_key(&bound, |(bound, _)| *bound) {
            Ok(found) => self.0[found].1 = self.0[found].1.saturating_add(1),
            Err(place) => self.0.insert(place, (bound, 1)),
        }
    }

    /// Returns the buckets that are not empty, in order: upper bound in microseconds and count.
    pub fn buckets(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Returns the number of latencies counted.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Returns the bound that this share (0 to 1) of the latencies does not exceed; `None` if there are no
    /// latencies, `Duration::MAX` if it is beyond the last bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0);
        let mut sum = 0_u64;
        let reached = self.0.iter().find(|(_, count)| {
            sum = sum.saturating_add(*count);
            sum as f64 >= wanted
        });
        reached
            .map(|(bound, _)| if *bound == u64::MAX { Duration::MAX } else { Duration::from_micros(*bound) })
    }

    /// Returns all buckets from the first to the last that is not empty, with the empty ones between them.
    pub(super) fn filled(&self) -> Vec<(u64, u64)> {
        let (Some((first, _)), Some((last, _))) = (self.0.first(), self.0.last()) else { return Vec::new() };
        let count = |bound| self.0.iter().find(|(b, _)| *b == bound).map_or(0, |(_, count)| *count);
        let range = bounds().chain([u64::MAX]).filter(|bound| (first..=last).contains(&bound));
        range.map(|bound| (bound, count(bound))).collect()
    }
}

/// Formats a bound for people.
pub(super) fn bound_words(bound: u64) -> String {
    match bound {
        u64::MAX => "more".to_owned(),
        micros if micros < 1_000 => format!("{micros}us"),
        micros if micros < 1_000_000 => format!("{}ms", micros as f64 / 1e3),
        micros => format!("{}s", micros as f64 / 1e6),
    }
}

fn bounds() -> impl Iterator<Item = u64> {
    (0..DECADES).flat_map(|decade| STEPS.map(|step| step * 10_u64.pow(decade)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: &[u64]) -> Latency {
        let mut latency = Latency::default();
        micros.iter().for_each(|m| latency.record(Duration::from_micros(*m)));
        latency
    }

    #[test]
    fn a_latency_is_counted_under_the_next_bound() {
        let latency = of(&[0, 10, 11, 15, 16, 71, 1_000, 1_001, 70_000_000, 70_000_001]);
        let expected =
            [(10, 2), (15, 2), (20, 1), (100, 1), (1_000, 1), (1_500, 1), (70_000_000, 1), (u64::MAX, 1)];
        assert_eq!(latency.buckets(), expected);
        assert_eq!(latency.count(), 10);
    }

    #[test]
    fn bounds_grow_by_two_thirds_at_most() {
        let bounds: Vec<u64> = bounds().collect();
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1] && pair[1] * 3 <= pair[0] * 5));
        assert_eq!((bounds.first(), bounds.last(), bounds.len()), (Some(&10), Some(&70_000_000), 42));
    }

    #[test]
    fn quantiles_are_bounds() {
        let mut micros = vec![900; 99];
        micros.push(40_000);
        let latency = of(&micros);
        assert_eq!(latency.quantile(0.5), Some(Duration::from_millis(1)));
        assert_eq!(latency.quantile(0.99), Some(Duration::from_millis(1)));
        assert_eq!(latency.quantile(1.0), Some(Duration::from_millis(50)));
        assert_eq!(Latency::default().quantile(0.5), None);
        assert_eq!(of(&[u64::MAX]).quantile(0.5), Some(Duration::MAX));
    }

    #[test]
    fn empty_buckets_between_are_filled() {
        assert_eq!(of(&[10, 30]).filled(), [(10, 1), (15, 0), (20, 0), (30, 1)]);
        assert_eq!(Latency::default().filled(), []);
        assert_eq!(of(&[70_000_000, 80_000_000]).filled(), [(70_000_000, 1), (u64::MAX, 1)]);
    }

    #[test]
    fn bounds_are_readable() {
        assert_eq!([15, 1_500, 70_000_000, u64::MAX].map(bound_words), ["15us", "1.5ms", "70s", "more"]);
    }
}
