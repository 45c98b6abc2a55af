//! Wall-clock time in the forms that objects and the runtime use. Waiting goes through `tokio::time`, never through here.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Now, as metav1.Time has it: whole seconds.
pub fn now() -> Time {
    Time(truncate(Timestamp::now()))
}

/// Nanoseconds since the epoch, as CRI counts.
pub fn now_nanos() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A CRI time (0 means none) as metav1.Time.
pub fn from_nanos(nanos: i64) -> Option<Time> {
    if nanos <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanos)).ok().map(|t| Time(truncate(t)))
}

fn truncate(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
