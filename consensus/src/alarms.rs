//! Alarms: problems of a master that an operator has to know about. Each master holds its own alarms and
//! hears the others' with every comparison (`compare.rs`), so that the last alarms of a stopped master are
//! still known. `master/node` shows them in `ephor status`, `master/apiserver` as metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use proto_env::Clock;
use proto_wire::raft::Alarm as WireAlarm;

use crate::types::NodeId;

/// The kind of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The disk is nearly full.
    NoSpace,
    /// The disk does not answer: a write has not become durable for seconds.
    DiskStalled,
    /// This replica differs from the majority: it does not serve and is being rebuilt.
    Diverged,
    /// Another replica differs from this one, or nobody can tell which is right.
    ReplicaDiffers,
    /// The disk or the store has failed: this master has stopped.
    StoreFailed,
    /// Some objects do not decode, and the components of this master skip them.
    UndecodableObjects,
}

/// One alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The alarm's name, such as `no-space`; one of [`AlarmKind::name`].
    pub kind: String,
    /// The reason, as one line for an operator.
    pub reason: String,
    /// The time at which it was raised, in seconds since 1970.
    pub since: u64,
}

/// This master's alarms, and the last ones heard from other masters.
#[derive(Default)]
pub(crate) struct Alarms {
    own: Mutex<BTreeMap<AlarmKind, Alarm>>,
    others: Mutex<BTreeMap<NodeId, Vec<Alarm>>>,
}

/// Maximum number of alarms taken from another master, and maximum bytes of each text.
const ALARMS_MAX: usize = 16;
const REASON_BYTES: usize = 512;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AlarmKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::NoSpace,
        Self::DiskStalled,
        Self::Diverged,
        Self::ReplicaDiffers,
        Self::StoreFailed,
        Self::UndecodableObjects,
    ];

    /// Returns the kind's name in `ephor status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "no-space",
            Self::DiskStalled => "disk-stalled",
            Self::Diverged => "diverged",
            Self::ReplicaDiffers => "replica-differs",
            Self::StoreFailed => "store-failed",
            Self::UndecodableObjects => "undecodable-objects",
        }
    }
}

impl Alarms {
    /// Raises an alarm, or updates the reason of an alarm that is already raised.
    pub(crate) fn raise(&self, kind: AlarmKind, reason: String, clock: &dyn Clock) {
        let mut own = lock(&self.own);
        if let Some(known) = own.get_mut(&kind) {
            known.reason = reason;
            return;
        }
        tracing::error!(alarm = kind.name(), reason, "alarm");
        let since = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        own.insert(kind, Alarm { kind: kind.name().to_owned(), reason, since });
    }

    pub(crate) fn clear(&self, kind: AlarmKind) {
        if lock(&self.own).remove(&kind).is_some() {
            tracing::info!(alarm = kind.name(), "the alarm is over");
        }
    }

    pub(crate) fn own(&self) -> Vec<Alarm> {
        lock(&self.own).values().cloned().collect()
    }

    pub(crate) fn to_wire(&self) -> Vec<WireAlarm> {
        let wire = |alarm: Alarm| WireAlarm { kind: alarm.kind, reason: alarm.reason, since: alarm.since };
        self.own().into_iter().map(wire).collect()
    }

    pub(crate) fn heard(&self, from: NodeId, alarms: Vec<WireAlarm>) {
        let cut = |text: String| text.chars().take(REASON_BYTES).collect::<String>();
        let alarms = alarms.into_iter().take(ALARMS_MAX);
        let alarms = alarms.map(|alarm| Alarm {
            kind: cut(alarm.kind),
            reason: cut(alarm.reason),
            since: alarm.since,
        });
        lock(&self.others).insert(from, alarms.collect());
    }

    pub(crate) fn of(&self, node: NodeId) -> Vec<Alarm> {
        lock(&self.others).get(&node).cloned().unwrap_or_default()
    }

    /// Forgets the alarms of masters that are no members any more.
    pub(crate) fn retain(&self, member: impl Fn(NodeId) -> bool) {
        lock(&self.others).retain(|node, _| member(*node));
    }

    /// Returns whether another master was last heard to have this alarm.
    pub(crate) fn has(&self, node: NodeId, kind: AlarmKind) -> bool {
        lock(&self.others).get(&node).is_some_and(|alarms| alarms.iter().any(|it| it.kind == kind.name()))
    }
}

#[cfg(test)]
mod tests {
    use proto_env::SystemClock;

    use super::*;

    #[test]
    fn an_alarm_keeps_its_time_and_what_others_send_is_bounded() {
        let (alarms, clock) = (Alarms::default(), SystemClock::new());
        alarms.raise(AlarmKind::NoSpace, "first".to_owned(), &clock);
        let since = alarms.own()[0].since;
        alarms.raise(AlarmKind::NoSpace, "second".to_owned(), &clock);
        let kind = AlarmKind::NoSpace.name().to_owned();
        assert_eq!(alarms.own(), vec![Alarm { kind, reason: "second".to_owned(), since }]);
        alarms.clear(AlarmKind::NoSpace);
        assert_eq!(alarms.own(), vec![]);
        let long = WireAlarm { kind: "no-space".to_owned(), reason: "x".repeat(1 << 20), since: 1 };
        alarms.heard(7, vec![long; 1000]);
        assert_eq!(alarms.of(7).len(), ALARMS_MAX);
        assert!(alarms.of(7).iter().all(|alarm| alarm.reason.len() == REASON_BYTES));
        assert!(alarms.has(7, AlarmKind::NoSpace) && !alarms.has(7, AlarmKind::Diverged));
        alarms.retain(|node| node != 7);
        assert_eq!(alarms.of(7), vec![]);
    }
}
