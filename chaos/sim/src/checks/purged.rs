//! Checks that the log is bounded: snapshots are triggered and the log is purged after them on every master, so
//! that after the last call no log has more entries than the policy allows. A trigger that was dropped, or a
//! snapshot that was never reported, shows in nothing that a client sees, and fills the disk.

/// Name of this check in reports.
pub const CHECK: &str = "log-bounded";
/// Entries beyond those that the policy allows: the next snapshot may be in progress.
const SLACK: u64 = 100;

/// Returns a message if a log that holds the entries after `first` and up to `last` is too long for a snapshot
/// every `count` entries. Half of `count` is kept after a snapshot, for followers that are behind.
pub fn check(first: u64, last: u64, count: u64) -> Option<String> {
    let (held, allowed) = (last.saturating_sub(first), 2 * count + SLACK);
    (held > allowed).then(|| format!("holds {held} log entries, with a snapshot every {count}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_purges_is_found() {
        assert_eq!(check(900, 1000, 50), None);
        assert_eq!(check(0, 1000, 20_000), None);
        assert_eq!(check(0, 1000, 50).unwrap(), "holds 1000 log entries, with a snapshot every 50");
    }
}
