//! Planted bugs: well-known mistakes that can be switched on, one per process, to prove that the simulation
//! detects them. `ephor-sim --bug NAME` switches one on; the code that would make the mistake asks [`is`].
//! Without the feature `planted`, which only the simulation's binary has, [`is`] is the constant `false`
//! and no bug is compiled in. `chaos/KNOWN_BUGS.md` says where each bug comes from and which check catches
//! it.

use std::fmt;
use std::str::FromStr;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug that can be switched on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        impl Bug {
            /// All bugs.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// Returns the bug's name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)+
                }
            }
        }
    };
}

bugs! {
    /// A vote is answered before it is synced.
    VoteNotSynced = "vote-not-synced",
    /// A vote is kept in memory alone.
    VoteNotWritten = "vote-not-written",
    /// Entries are acknowledged before they are synced.
    LogNotSynced = "log-not-synced",
    /// Entries are acknowledged before they are synced, and a leader accepts a follower whose log has gone
    /// back.
    LogReversalAllowed = "log-reversal-allowed",
    /// The log writes some appends later than those after them, which are acknowledged before.
    AppendOutOfOrder = "append-out-of-order",
    /// A sync that failed counts as one that succeeded.
    SyncErrorIgnored = "sync-error-ignored",
    /// A leader counts the entries as stored by a follower that gave no answer.
    CommitWithoutQuorum = "commit-without-quorum",
    /// Reads wait for no quorum: the local replica is taken to be current.
    StaleRead = "stale-read",
    /// A leader gives a read index without asking a quorum whether it still leads.
    ReadWithoutQuorum = "read-without-quorum",
    /// A leader sends an append without entries behind one without an answer, whose answer then counts for
    /// both.
    AnswerProvesTooMuch = "answer-proves-too-much",
    /// A follower answers a read at the leader's index without having applied it.
    ReadBeforeApplied = "read-before-applied",
    /// A read takes the answer of a round that began before the read came.
    ReadJoinsRound = "read-joins-round",
    /// A list carries the revision that the store had reached after the list was made.
    TornList = "torn-list",
    /// A watch loses an event where one batch ends and the next begins.
    WatchBatchEdge = "watch-batch-edge",
    /// A watch resumes one revision late.
    WatchResumesLate = "watch-resumes-late",
    /// A watch resumes one revision early.
    WatchResumesEarly = "watch-resumes-early",
    /// A watch from a revision older than the history begins at the oldest known event.
    WatchForgetsCompaction = "watch-forgets-compaction",
    /// A watch that lags, as after an installed snapshot, continues without reporting the gap.
    WatchLagsSilently = "watch-lags-silently",
    /// A watch from a revision that this replica has not reached begins at the one it has reached.
    WatchFromFuture = "watch-from-future",
    /// A watch from the revision before the compacted one begins without the compacted event.
    WatchAtCompaction = "watch-at-compaction",
    /// A watch that is behind by more events than its buffer holds loses the others.
    WatchDropsBacklog = "watch-drops-backlog",
    /// A bookmark carries the revision that the store has reached, not the one that the watch has
    /// delivered.
    BookmarkAhead = "bookmark-ahead",
    /// The watches of the leading master deliver nothing, and do not end.
    WatchSilent = "watch-silent",
    /// A deletion reaches no watch.
    DeleteWithoutEvent = "delete-without-event",
    /// Some writes are answered and delivered to watches, and then no replica keeps them.
    WriteVanishes = "write-vanishes",
    /// A resent proposal is applied again.
    ResendAppliedTwice = "resend-applied-twice",
    /// Outcomes of proposals are lost in a restart, and snapshots do not contain them.
    OutcomesForgotten = "outcomes-forgotten",
    /// The commands of an entry are applied in an order that differs from master to master.
    ApplyInHashOrder = "apply-in-hash-order",
    /// The index of the last applied entry is durable, but the changes of that entry are not.
    AppliedAheadOfData = "applied-ahead-of-data",
    /// The revision after a restart is that of the newest object, so deletions rewind it.
    RestartRewindsRevision = "restart-rewinds-revision",
    /// Preconditions are checked before a write enters the log, not when it is applied.
    CheckBeforeLog = "check-before-log",
    /// A deletion is applied without a check of its preconditions.
    DeleteUnchecked = "delete-unchecked",
    /// Some transactions apply only the first of their mutations.
    TransactionTorn = "transaction-torn",
    /// Only the first precondition of a transaction is checked.
    TransactionHalfChecked = "transaction-half-checked",
    /// Writes of a deposed leader's components are applied in spite of their fence.
    FenceIgnored = "fence-ignored",
    /// A write with an unknown outcome is answered as one that never entered the log.
    UnknownAsNotEntered = "unknown-as-not-entered",
    /// The log is purged before the objects are durable.
    PurgeBeforeDurable = "purge-before-durable",
    /// The policy never triggers a snapshot, so the log is never purged.
    SnapshotTriggerDropped = "snapshot-trigger-dropped",
    /// A snapshot is sent under the id of an entry of another term, and installed under that id.
    SnapshotOfAnotherTerm = "snapshot-of-another-term",
    /// A snapshot lacks the membership.
    SnapshotWithoutMembers = "snapshot-without-members",
    /// Ids of masters are counted up instead of taken from the log, so they are reused.
    NodeIdReused = "node-id-reused",
}

/// Error: no bug has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no planted bug is called {0}; there are {names}", names = names())]
pub struct UnknownBug(String);

fn names() -> String {
    Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Bug {
    type Err = UnknownBug;

    fn from_str(name: &str) -> Result<Self, UnknownBug> {
        let found = Self::ALL.iter().find(|bug| bug.name() == name);
        found.copied().ok_or_else(|| UnknownBug(name.to_owned()))
    }
}

#[cfg(feature = "planted")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    const NONE: u8 = u8::MAX;
    static SET: AtomicU8 = AtomicU8::new(NONE);

    /// Switches a bug on, in the whole process and until it ends.
    pub fn set(bug: Bug) {
        SET.store(bug as u8, Ordering::Relaxed);
    }

    /// Returns whether this bug is switched on.
    pub fn is(bug: Bug) -> bool {
        SET.load(Ordering::Relaxed) == bug as u8
    }

    /// Returns the bug that is switched on; `None` if there is none.
    pub fn any() -> Option<Bug> {
        Bug::ALL.iter().copied().find(|bug| is(*bug))
    }
}

#[cfg(feature = "planted")]
pub use switch::{any, is, set};

/// Returns whether this bug is switched on: always false without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}

/// Returns the bug that is switched on: always `None` without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn any() -> Option<Bug> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_read_back() {
        for bug in Bug::ALL {
            assert_eq!(bug.name().parse(), Ok(*bug));
            let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(bug.name().chars().all(kebab), "{bug}");
        }
        let error = "stale".parse::<Bug>().unwrap_err().to_string();
        assert!(error.starts_with("no planted bug is called stale; there are vote-not-synced, "), "{error}");
    }

    #[cfg(not(feature = "planted"))]
    #[test]
    fn nothing_is_planted_without_the_feature() {
        const { assert!(!is(Bug::StaleRead), "a constant, so nothing is left of the calls") };
        assert!(Bug::ALL.iter().all(|bug| !is(*bug)));
        assert_eq!(any(), None);
    }

    #[cfg(feature = "planted")]
    #[test]
    fn the_one_that_is_set_is_switched_on() {
        assert_eq!(any(), None);
        set(Bug::StaleRead);
        assert!(Bug::ALL.iter().all(|bug| is(*bug) == (*bug == Bug::StaleRead)));
        assert_eq!(any(), Some(Bug::StaleRead));
    }
}
