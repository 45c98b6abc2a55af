//! Wall-clock time in the forms used by API objects and the runtime. Waiting uses `tokio::time`, never this
//! module.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Returns the current time as a metav1.Time: whole seconds.
pub fn now() -> Time {
    Time(truncate(Timestamp::now()))
}

/// Returns the current time in nanoseconds since the Unix epoch, as CRI counts it.
pub fn now_nanos() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Converts a CRI time to a metav1.Time; `None` if it is 0 (not set).
pub fn from_nanos(nanos: i64) -> Option<Time> {
    if nanos <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanos)).ok().map(|t| Time(truncate(t)))
}

/// Converts seconds since the start of Unix time to a metav1.Time.
pub fn from_seconds(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}

fn truncate(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
