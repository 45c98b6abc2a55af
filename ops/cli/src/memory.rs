//! Returns memory that a master no longer uses to the system. The allocator of glibc keeps what was freed
//! in the middle of its heaps until `malloc_trim` is called; `commands/master.rs` starts the thread that
//! calls it. `ops/docs/decisions/memory.md` says why no other allocator is used.

use std::time::Duration;

/// Interval between two calls of `malloc_trim`. Measured: a call takes at most a few milliseconds.
const INTERVAL: Duration = Duration::from_secs(10);

/// Starts a thread that returns freed memory to the system for as long as the process runs.
///
/// # Errors
///
/// Fails if no thread can be started.
pub fn give_back_freed() -> std::io::Result<()> {
    let forever = || loop {
        std::thread::sleep(INTERVAL);
        trim();
    };
    std::thread::Builder::new().name("memory".into()).spawn(forever).map(drop)
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: takes the allocator's own locks; any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Frees 64 MiB of small pieces below one that stays allocated: glibc does not return those to the
    /// system by itself.
    #[test]
    #[cfg(target_env = "gnu")]
    fn what_was_freed_below_what_is_kept_goes_back() {
        let mut pieces: Vec<Box<[u8]>> = (0..16 * 1024).map(|i| vec![i as u8; 4000].into()).collect();
        let kept = pieces.pop();
        let before = resident_bytes();
        drop(pieces);
        trim();
        let after = resident_bytes();
        assert!(after + 48 * 1024 * 1024 < before, "{before} before, {after} after");
        drop(kept);
    }
}
