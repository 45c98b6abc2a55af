//! Statistics that tests print: medians and maxima of durations.

use std::time::Duration;

/// Returns the median; zero if there are no durations.
pub fn p50(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Formats one line with number, median and maximum in milliseconds.
pub fn summary(what: &str, durations: &[Duration]) -> String {
    let max = durations.iter().max().copied().unwrap_or_default();
    format!("{what}: n={} p50={} ms max={} ms", durations.len(), p50(durations).as_millis(), max.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let ms = Duration::from_millis;
        assert_eq!(p50(&[ms(9), ms(1), ms(5)]), ms(5));
    }
}
