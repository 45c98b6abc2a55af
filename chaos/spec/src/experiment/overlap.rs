//! Checks that no two faults contradict each other while both last. `check` calls it last. A role is resolved
//! when its fault fires, so two faults on `leader` may strike two masters; only a certain contradiction is an
//! error.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Entry, Spec};
use crate::Error;
use crate::fault::{ClockChange, Cut, Fault, WorkerKind};
use crate::target::{NodeName, Target};
use crate::units::words;

/// Fails at the first entry that contradicts an earlier one.
pub(super) fn check(spec: &Spec) -> Result<(), Error> {
    for (j, later) in spec.schedule.iter().enumerate() {
        for (i, earlier) in spec.schedule.iter().enumerate().take(j) {
            let end = earlier.end(spec.duration);
            if !meet(earlier, later, end) {
                continue;
            }
            if let Some(what) = contradiction(spec, &earlier.fault, &later.fault) {
                let cause = format!(
                    "{what} by spec.schedule[{i}] ({}, {} to {})",
                    earlier.fault,
                    words(earlier.at),
                    words(end)
                );
                let hint = "let one end before the other begins, or strike another target";
                return Err(Error::new(format!("spec.schedule[{j}]"), cause, hint));
            }
        }
    }
    Ok(())
}

/// Returns whether two faults last at the same time, given that `earlier` is not after `later`.
fn meet(earlier: &Entry, later: &Entry, end: Duration) -> bool {
    later.at < end || (later.at == earlier.at && !later.fault.is_instant() && !earlier.fault.is_instant())
}

/// Returns what the earlier fault has already done, if the later one contradicts it; else `None`.
fn contradiction(spec: &Spec, earlier: &Fault, later: &Fault) -> Option<String> {
    if let (Fault::Cut(Cut::Shape(_)), Fault::Cut(Cut::Shape(_))) = (earlier, later) {
        return Some("the group is already parted".to_owned());
    }
    if let (Some(first), Some(second)) = (down(earlier), down(later)) {
        let workers = matches!(earlier, Fault::Worker(_));
        if workers != matches!(later, Fault::Worker(_)) {
            return None;
        }
        return shared(spec, first, second, workers).map(|who| format!("{who} is already struck"));
    }
    match (earlier, later) {
        (Fault::Clock(first), Fault::Clock(second)) => {
            let both_skewed =
                matches!((first.change, second.change), (ClockChange::Skew(_), ClockChange::Skew(_)));
            let who = shared(spec, &first.target, &second.target, false).filter(|_| both_skewed)?;
            Some(format!("the clock of {who} is already skewed"))
        }
        (Fault::Disk(first), Fault::Disk(second)) => {
            let same = earlier.kind() == later.kind();
            let who = shared(spec, &first.target, &second.target, false).filter(|_| same)?;
            Some(format!("the disk of {who} already fails so"))
        }
        (Fault::Busy(first), Fault::Busy(second)) => {
            let who =
                shared(spec, &first.target, &second.target, false).filter(|_| first.kind == second.kind)?;
            Some(format!("{who} is already busy so"))
        }
        (Fault::Worker(first), Fault::Worker(second)) => {
            let both_cut = (first.kind, second.kind) == (WorkerKind::Cut, WorkerKind::Cut);
            let who = shared(spec, &first.target, &second.target, true).filter(|_| both_cut)?;
            Some(format!("{who} is already cut"))
        }
        _ if earlier.key() == later.key() => {
            let first = links(spec, earlier)?;
            let (from, to) = links(spec, later)?.into_iter().find(|link| first.contains(link))?;
            Some(format!("{from} -> {to} is already struck"))
        }
        _ => None,
    }
}

/// Returns the target of a fault that stops processes; `None` for other faults.
fn down(fault: &Fault) -> Option<&Target> {
    match fault {
        Fault::Kill(strike) | Fault::Pause(strike) | Fault::Powerloss(strike) => Some(&strike.target),
        Fault::Worker(worker) if worker.kind != WorkerKind::Cut => Some(&worker.target),
        _ => None,
    }
}

/// Returns the name of what both targets certainly strike; `None` if they may differ.
fn shared(spec: &Spec, first: &Target, second: &Target, workers: bool) -> Option<String> {
    match (first, second) {
        (Target::All, other) | (other, Target::All) => Some(other.to_string()),
        _ => {
            let first = fixed(spec, first, workers)?;
            let second = fixed(spec, second, workers)?;
            first.intersection(&second).next().map(NodeName::to_string)
        }
    }
}

/// Returns the nodes of a target if the file alone decides them; `None` if it depends on the run.
fn fixed(spec: &Spec, target: &Target, workers: bool) -> Option<BTreeSet<NodeName>> {
    match target {
        Target::Nodes(nodes) => Some(nodes.clone()),
        Target::All if workers => Some((1..=spec.cluster.workers).filter_map(NodeName::worker).collect()),
        Target::All => Some((1..=spec.cluster.masters).filter_map(NodeName::master).collect()),
        _ => None,
    }
}

/// Returns the links of a fault, sender first, if the file alone decides them; else `None`.
fn links(spec: &Spec, fault: &Fault) -> Option<BTreeSet<(NodeName, NodeName)>> {
    let (from, to, one_way) = fault.links()?;
    let (from, to) = (fixed(spec, from, false)?, fixed(spec, to, false)?);
    let mut links = BTreeSet::new();
    for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b) {
        links.insert((a, b));
        if !one_way {
            links.insert((b, a));
        }
    }
    Some(links)
}

#[cfg(test)]
mod tests {
    use crate::experiment::tests::with_schedule;

    fn error(schedule: &str) -> String {
        with_schedule(schedule).expect_err(schedule).to_string()
    }

    const HINT: &str = "; hint: let one end before the other begins, or strike another target";

    #[test]
    fn a_node_is_struck_once_at_a_time() {
        assert_eq!(
            error(
                "- {at: 5s, for: 10s, fault: {kill: {target: m1}}}\n\
                 - {at: 14s, for: 1s, fault: {pause: {target: [m1, m2]}}}"
            ),
            format!("spec.schedule[1]: m1 is already struck by spec.schedule[0] (kill m1, 5s to 15s){HINT}")
        );
        // A kill without an end lasts until the end of the run.
        assert!(
            error("- {at: 5s, fault: {kill: {target: m1}}}\n- {at: 50s, fault: {powerloss: {target: all}}}")
                .contains("m1 is already struck by spec.schedule[0] (kill m1, 5s to 1m)")
        );
        assert!(
            error(
                "- {at: 5s, for: 9s, fault: {kill: {target: all}}}\n\
         - {at: 6s, for: 1s, fault: {pause: {target: leader}}}"
            )
            .contains("leader is already struck")
        );
        assert!(
            error(
                "- {at: 5s, for: 9s, fault: {worker: {target: all, kind: kill}}}\n\
         - {at: 6s, for: 1s, fault: {worker: {target: w1, kind: pause}}}"
            )
            .contains("w1 is already struck")
        );
    }

    #[test]
    fn one_after_the_other_or_another_node_is_fine() {
        for fine in [
            "- {at: 5s, for: 10s, fault: {kill: {target: m1}}}\n\
             - {at: 15s, for: 1s, fault: {pause: {target: m1}}}",
            "- {at: 5s, for: 10s, fault: {kill: {target: m1}}}\n\
             - {at: 5s, for: 10s, fault: {kill: {target: m2}}}",
            "- {at: 5s, for: 10s, fault: {kill: {target: leader}}}\n\
             - {at: 6s, for: 10s, fault: {kill: {target: leader}}}",
            "- {at: 5s, for: 10s, fault: {kill: {target: all}}}\n\
             - {at: 6s, for: 5s, fault: {worker: {target: w1, kind: kill}}}",
            "- {at: 5s, for: 10s, fault: {kill: {target: m1}}}\n\
             - {at: 6s, fault: {disk: {target: m1, kind: bitflip}}}",
        ] {
            assert_eq!(with_schedule(fine).map(|_| ()), Ok(()), "{fine}");
        }
    }

    #[test]
    fn a_link_has_one_fault_of_a_kind() {
        assert_eq!(
            error(
                "- {at: 5s, for: 10s, fault: {slow: {from: m1, to: all, latency: 1s}}}\n\
                 - {at: 6s, for: 1s, fault: {slow: {from: m2, to: m1, oneWay: true, latency: 2s}}}"
            ),
            format!(
                "spec.schedule[1]: m2 -> m1 is already struck by spec.schedule[0] (slow m1 <-> all by 1s, \
                 5s to 15s){HINT}"
            )
        );
        for fine in [
            "- {at: 5s, for: 10s, fault: {cut: {from: m1, to: all, oneWay: true}}}\n\
             - {at: 6s, for: 1s, fault: {cut: {from: all, to: m1, oneWay: true}}}",
            "- {at: 5s, for: 10s, fault: {slow: {from: m1, to: all, latency: 1s}}}\n\
             - {at: 6s, for: 1s, fault: {cut: {from: m1, to: all}}}",
            "- {at: 5s, for: 10s, fault: {cut: {from: leader, to: all}}}\n\
             - {at: 6s, for: 1s, fault: {cut: {from: leader, to: all}}}",
        ] {
            assert_eq!(with_schedule(fine).map(|_| ()), Ok(()), "{fine}");
        }
    }

    #[test]
    fn a_group_is_parted_in_one_way_at_a_time() {
        assert!(
            error(
                "- {at: 5s, for: 10s, fault: {cut: {shape: minority}}}\n\
         - {at: 6s, for: 1s, fault: {cut: {shape: leader-alone}}}"
            )
            .contains(
                "spec.schedule[1]: the group is already parted by spec.schedule[0] (cut minority, \
             5s to 15s)"
            )
        );
    }

    #[test]
    fn clocks_disks_and_worker_links_have_one_state() {
        let clock = error(
            "- {at: 5s, for: 10s, fault: {clock: {target: m1, skew: 5s}}}\n\
             - {at: 5s, for: 1s, fault: {clock: {target: all, skew: -5s}}}",
        );
        assert!(clock.contains("the clock of m1 is already skewed"), "{clock}");
        let disk = error(
            "- {at: 5s, for: 10s, fault: {disk: {target: m1, kind: enospc}}}\n\
             - {at: 6s, for: 1s, fault: {disk: {target: m1, kind: enospc}}}",
        );
        assert!(disk.contains("the disk of m1 already fails so"), "{disk}");
        let cut = error(
            "- {at: 5s, for: 10s, fault: {worker: {target: w1, kind: cut}}}\n\
             - {at: 6s, for: 1s, fault: {worker: {target: w1, kind: cut}}}",
        );
        assert!(cut.contains("w1 is already cut"), "{cut}");
        for fine in [
            "- {at: 5s, for: 10s, fault: {clock: {target: m1, skew: 5s}}}\n\
             - {at: 6s, fault: {clock: {target: m1, jump: 5s}}}",
            "- {at: 5s, for: 10s, fault: {disk: {target: m1, kind: enospc}}}\n\
             - {at: 6s, for: 1s, fault: {disk: {target: m1, kind: slow-fsync, delay: 1s}}}",
        ] {
            assert_eq!(with_schedule(fine).map(|_| ()), Ok(()), "{fine}");
        }
    }
}
