//! The cells of one object as JSON, built once per revision. [`Row`] holds the text and the positions of
//! ages; [`Rows`] keeps recently used rows alive and drops idle ones. An object's view (`registry/object.rs`)
//! holds only a weak reference to its row.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{Cell, human, printer};

/// Idle time after which a row is dropped: longer than the pauses of those who look again and again, and so
/// short that what a load made is gone within a minute.
const IDLE: Duration = Duration::from_secs(45);

/// Maximum size of all rows of one API server together, in bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Interval between sweeps that drop idle rows, in milliseconds, and number of rows checked per sweep.
const SWEEP_MS: u64 = 1000;
const SWEEP_ROWS: usize = 2000;

/// Approximate memory of a row in addition to its text, in bytes.
const OVERHEAD_BYTES: usize = 96;

/// The cells of one object: a JSON list without its ages, which are inserted when it is sent.
#[derive(Debug)]
pub struct Row {
    json: Box<str>,
    /// Byte offsets into `json`, ascending, and the times whose ages are inserted there.
    ages: Box<[(usize, Timestamp)]>,
    /// Time of the last use, in milliseconds of the clock given to [`Rows`].
    asked: AtomicU64,
}

impl Row {
    /// Builds the row of an object, by the group and the resource it is stored under.
    pub fn new(group: &str, resource: &str, object: &Value) -> Self {
        let (mut json, mut ages) = (String::from("["), Vec::new());
        for (i, cell) in (printer(group, resource).cells)(object).iter().enumerate() {
            if i > 0 {
                json.push(',');
            }
            match cell {
                Cell::Fixed(value) => json += &value.to_string(),
                Cell::Ago { before, time, after } => {
                    // The texts that printers put around an age need no escaping in JSON.
                    json.push('"');
                    json += before;
                    ages.push((json.len(), *time));
                    json += after;
                    json.push('"');
                }
            }
        }
        json.push(']');
        Row { json: json.into(), ages: ages.into(), asked: AtomicU64::new(0) }
    }

    /// Appends the list of cells, with ages as of `now`.
    pub fn write(&self, out: &mut Vec<u8>, now: Timestamp) {
        let mut at = 0;
        for (offset, time) in &self.ages {
            out.extend_from_slice(&self.json.as_bytes()[at..*offset]);
            out.extend_from_slice(human(now.duration_since(*time)).as_bytes());
            at = *offset;
        }
        out.extend_from_slice(&self.json.as_bytes()[at..]);
    }

    fn size_bytes(&self) -> usize {
        self.json.len() + self.ages.len() * size_of::<(usize, Timestamp)>() + OVERHEAD_BYTES
    }
}

/// Weak reference from an object's view to its row; empty once the row was dropped.
#[derive(Debug, Default)]
pub struct RowSlot(Mutex<Weak<Row>>);

/// Cache of rows, kept alive while they are in use.
#[derive(Debug, Default)]
pub struct Rows {
    kept: Mutex<CachedRows>,
    /// Time of the last sweep, in milliseconds.
    swept_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct CachedRows {
    rows: VecDeque<Arc<Row>>,
    bytes: usize,
}

impl Rows {
    /// Returns the row of a slot, built by `make` where there is none. `now` is read from any monotonic
    /// clock.
    pub fn get(&self, slot: &RowSlot, now: Duration, make: impl FnOnce() -> Row) -> Arc<Row> {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut kept = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = kept.upgrade() {
            row.asked.store(now_ms, Ordering::Relaxed);
            return row;
        }
        let row = Arc::new(make());
        row.asked.store(now_ms, Ordering::Relaxed);
        *kept = Arc::downgrade(&row);
        drop(kept);
        self.keep(Arc::clone(&row), now_ms);
        row
    }

    /// Returns the size of the cached rows in bytes.
    pub fn size_bytes(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Drops rows that are idle or whose object is gone. It is called with every request, and checks a
    /// bounded number of rows once per second.
    pub fn tidy(&self, now: Duration) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let swept_ms = self.swept_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(swept_ms) >= SWEEP_MS;
        let mine = || self.swept_ms.compare_exchange(swept_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if due && mine().is_ok() {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).sweep(now_ms, SWEEP_ROWS);
        }
    }

    fn keep(&self, row: Arc<Row>, now_ms: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += row.size_bytes();
        kept.rows.push_back(row);
        // Two rows are checked for each one added, so that idle rows are dropped at least as fast as new ones
        // come.
        kept.sweep(now_ms, 2);
        while kept.bytes > MAX_BYTES {
            let Some(row) = kept.rows.pop_front() else { break };
            kept.bytes -= row.size_bytes();
        }
    }
}

impl CachedRows {
    fn sweep(&mut self, now_ms: u64, at_most: usize) {
        for _ in 0..at_most.min(self.rows.len()) {
            let Some(row) = self.rows.pop_front() else { return };
            let idle = now_ms.saturating_sub(row.asked.load(Ordering::Relaxed));
            // No weak reference means that the object was changed or deleted.
            if Arc::weak_count(&row) == 0 || u128::from(idle) > IDLE.as_millis() {
                self.bytes -= row.size_bytes();
            } else {
                self.rows.push_back(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(row: &Row, now: &str) -> Value {
        let mut out = Vec::new();
        row.write(&mut out, now.parse().expect("a time"));
        serde_json::from_slice(&out).expect("JSON")
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "a\"b", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 2,
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:08:00Z"}}}]}})
    }

    #[test]
    fn only_the_ages_of_a_row_change() {
        let row = Row::new("", "pods", &pod());
        let at_ten = text(&row, "2026-01-01T00:10:00Z");
        assert_eq!(
            at_ten,
            json!(["a\"b", "0/1", "Running", "2 (2m ago)", "10m", "<none>", "<none>", "<none>", "<none>"])
        );
        let at_noon = text(&row, "2026-01-01T12:00:00Z");
        assert_eq!((&at_noon[3], &at_noon[4]), (&json!("2 (11h ago)"), &json!("12h")));
        let unknown = Row::new("", "configmaps", &json!({"metadata": {"name": "x"}}));
        assert_eq!(text(&unknown, "2026-01-01T00:00:00Z"), json!(["x", 0, "<unknown>"]));
    }

    #[test]
    fn a_row_is_made_once_and_goes_when_nobody_asks_or_its_object_goes() {
        let rows = Rows::default();
        let make = || Row::new("", "pods", &pod());
        let (mut slots, later) = (vec![RowSlot::default(), RowSlot::default()], IDLE / 2);
        for slot in &slots {
            rows.get(slot, Duration::ZERO, make);
        }
        rows.get(&slots[0], later, || unreachable!("is kept"));
        let both = rows.size_bytes();

        rows.tidy(IDLE + later);
        assert_eq!(rows.size_bytes(), both / 2, "the one that was asked for later stays");
        rows.get(&slots[0], IDLE + later, || unreachable!("is kept"));
        rows.get(&slots[1], IDLE + later, make);
        slots.pop();
        rows.tidy(IDLE + later * 2);
        assert_eq!(rows.size_bytes(), both / 2, "the one without an object goes");
        rows.tidy(IDLE * 3);
        assert_eq!(rows.size_bytes(), 0);
    }

    #[test]
    fn rows_together_are_bounded() {
        let rows = Rows::default();
        let big = json!({"metadata": {"name": "x".repeat(1024 * 1024)}});
        let slots: Vec<RowSlot> = (0..70).map(|_| RowSlot::default()).collect();
        for slot in &slots {
            rows.get(slot, Duration::ZERO, || Row::new("", "configmaps", &big));
        }
        assert!(rows.size_bytes() <= MAX_BYTES, "{}", rows.size_bytes());
        rows.get(&slots[69], Duration::ZERO, || unreachable!("the newest is kept"));
    }
}
