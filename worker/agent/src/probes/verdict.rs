//! Probe thresholds: the number of equal results in a row after which a result counts. Pure; kubelet's
//! `worker.doProbe`.

/// Thresholds of one probe, and the count of its last equal results.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
}

impl Thresholds {
    /// Creates thresholds of at least 1 each; `None` is 1 for successes and 3 for failures.
    pub fn new(success: Option<i32>, failure: Option<i32>) -> Self {
        let at_least_one = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1)
        };
        Self { success: at_least_one(success, 1), failure: at_least_one(failure, 3), last: None, run: 0 }
    }

    /// Counts one result; returns it if its threshold is reached, else `None`.
    pub fn observe(&mut self, healthy: bool) -> Option<bool> {
        if self.last == Some(healthy) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(healthy);
            self.run = 1;
        }
        let needed = if healthy { self.success } else { self.failure };
        (self.run >= needed).then_some(healthy)
    }

    /// Returns the number of successes in a row that are needed.
    pub fn success(&self) -> u32 {
        self.success
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_counts_after_as_many_in_a_row_as_its_threshold() {
        let mut thresholds = Thresholds::new(Some(2), None);
        let seen: Vec<_> = [true, false, true, true, false, false, true, false, false, false]
            .into_iter()
            .map(|healthy| thresholds.observe(healthy))
            .collect();
        assert_eq!(seen, [None, None, None, Some(true), None, None, None, None, None, Some(false)]);
    }
}
