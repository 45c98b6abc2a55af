//! File forms of the faults whose fields depend on each other. serde reads and writes these forms; converting
//! one to the type in `fault` checks that its fields fit together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ClockChange, DiskKind, Shape, is_false};
use crate::target::Target;
use crate::units::{self, Offset};

/// Form of `cut`, with all fields that it may have.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Cut {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shape: Option<Shape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Target>,
    #[serde(default, skip_serializing_if = "is_false")]
    one_way: bool,
}

impl TryFrom<Cut> for super::Cut {
    type Error = &'static str;

    fn try_from(form: Cut) -> Result<Self, Self::Error> {
        match (form.shape, form.from, form.to) {
            (Some(shape), None, None) if !form.one_way => Ok(Self::Shape(shape)),
            (Some(_), None, None) => {
                Err("a shape is cut both ways; hint: leave out oneWay, or write from and to instead of shape")
            }
            (None, Some(from), Some(to)) => Ok(Self::Links { from, to, one_way: form.one_way }),
            _ => Err("it is not clear what is cut; hint: write either shape alone, or both from and to"),
        }
    }
}

impl From<super::Cut> for Cut {
    fn from(cut: super::Cut) -> Self {
        match cut {
            super::Cut::Shape(shape) => Self { shape: Some(shape), from: None, to: None, one_way: false },
            super::Cut::Links { from, to, one_way } => {
                Self { shape: None, from: Some(from), to: Some(to), one_way }
            }
        }
    }
}

/// Names of [`DiskKind`] in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DiskWord {
    Eio,
    Enospc,
    Bitflip,
    Truncate,
    SlowFsync,
    Iops,
}

/// Form of `disk`, with all fields that it may have.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    target: Target,
    kind: DiskWord,
    #[serde(default, with = "units::optional", skip_serializing_if = "Option::is_none")]
    delay: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
}

impl TryFrom<Disk> for super::Disk {
    type Error = &'static str;

    fn try_from(form: Disk) -> Result<Self, Self::Error> {
        if form.limit.is_some() && !matches!(form.kind, DiskWord::Iops) {
            return Err("only iops has a limit; hint: leave out limit");
        }
        let kind = match (form.kind, form.delay) {
            (DiskWord::Iops, None) => match form.limit {
                Some(limit) if limit > 0 => DiskKind::Iops { limit },
                _ => return Err("iops has no limit; hint: add one, as limit: 150"),
            },
            (DiskWord::SlowFsync, Some(delay)) if !delay.is_zero() => DiskKind::SlowFsync { delay },
            (DiskWord::SlowFsync, _) => {
                return Err("slow-fsync has no delay; hint: add one, as delay: 200ms");
            }
            (_, Some(_)) => return Err("only slow-fsync has a delay; hint: leave out delay"),
            (DiskWord::Eio, None) => DiskKind::Eio,
            (DiskWord::Enospc, None) => DiskKind::Enospc,
            (DiskWord::Bitflip, None) => DiskKind::Bitflip,
            (DiskWord::Truncate, None) => DiskKind::Truncate,
        };
        Ok(Self { target: form.target, kind })
    }
}

impl From<super::Disk> for Disk {
    fn from(disk: super::Disk) -> Self {
        let (kind, delay, limit) = match disk.kind {
            DiskKind::Eio => (DiskWord::Eio, None, None),
            DiskKind::Enospc => (DiskWord::Enospc, None, None),
            DiskKind::Bitflip => (DiskWord::Bitflip, None, None),
            DiskKind::Truncate => (DiskWord::Truncate, None, None),
            DiskKind::SlowFsync { delay } => (DiskWord::SlowFsync, Some(delay), None),
            DiskKind::Iops { limit } => (DiskWord::Iops, None, Some(limit)),
        };
        Self { target: disk.target, kind, delay, limit }
    }
}

/// Form of `clock`, with all fields that it may have.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clock {
    target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skew: Option<Offset>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jump: Option<Offset>,
}

impl TryFrom<Clock> for super::Clock {
    type Error = &'static str;

    fn try_from(form: Clock) -> Result<Self, Self::Error> {
        let change = match (form.skew, form.jump) {
            (Some(by), None) => ClockChange::Skew(by),
            (None, Some(by)) => ClockChange::Jump(by),
            _ => return Err("a clock has either a skew or a jump; hint: write one, as skew: -5s"),
        };
        Ok(Self { target: form.target, change })
    }
}

impl From<super::Clock> for Clock {
    fn from(clock: super::Clock) -> Self {
        let (skew, jump) = match clock.change {
            ClockChange::Skew(by) => (Some(by), None),
            ClockChange::Jump(by) => (None, Some(by)),
        };
        Self { target: clock.target, skew, jump }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use crate::fault::Fault;

    fn error(fault: Value) -> String {
        from_value::<Fault>(fault).unwrap_err().to_string()
    }

    #[test]
    fn a_cut_is_a_shape_or_two_sides() {
        let unclear = "it is not clear what is cut; hint: write either shape alone, or both from and to";
        assert_eq!(error(json!({"cut": {}})), unclear);
        assert_eq!(error(json!({"cut": {"from": "m1"}})), unclear);
        assert_eq!(error(json!({"cut": {"shape": "ring", "from": "m1", "to": "m2"}})), unclear);
        assert_eq!(
            error(json!({"cut": {"shape": "ring", "oneWay": true}})),
            "a shape is cut both ways; hint: leave out oneWay, or write from and to instead of shape"
        );
    }

    #[test]
    fn a_delay_is_for_slow_fsync_alone() {
        let missing = "slow-fsync has no delay; hint: add one, as delay: 200ms";
        assert_eq!(error(json!({"disk": {"target": "m1", "kind": "slow-fsync"}})), missing);
        assert_eq!(error(json!({"disk": {"target": "m1", "kind": "slow-fsync", "delay": "0s"}})), missing);
        assert_eq!(
            error(json!({"disk": {"target": "m1", "kind": "eio", "delay": "1s"}})),
            "only slow-fsync has a delay; hint: leave out delay"
        );
    }

    #[test]
    fn a_limit_is_for_iops_alone() {
        let missing = "iops has no limit; hint: add one, as limit: 150";
        assert_eq!(error(json!({"disk": {"target": "m1", "kind": "iops"}})), missing);
        assert_eq!(error(json!({"disk": {"target": "m1", "kind": "iops", "limit": 0}})), missing);
        assert_eq!(
            error(json!({"disk": {"target": "m1", "kind": "eio", "limit": 1}})),
            "only iops has a limit; hint: leave out limit"
        );
    }

    #[test]
    fn a_clock_has_one_change() {
        let one = "a clock has either a skew or a jump; hint: write one, as skew: -5s";
        assert_eq!(error(json!({"clock": {"target": "m1"}})), one);
        assert_eq!(error(json!({"clock": {"target": "m1", "skew": "1s", "jump": "1s"}})), one);
    }
}
