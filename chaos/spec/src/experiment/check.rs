//! Checks what the types of an experiment do not ensure: ranges, names of nodes, which nodes a fault may
//! strike, the order of the schedule. [`Experiment::check`] calls it; it calls `overlap` for pairs of faults.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Entry, Experiment, Invariant, Mix, Probe, Spec, overlap};
use crate::Error;
use crate::fault::{Cut, Fault, Member, Replace, Shape, Slow};
use crate::target::{NodeName, Role, Target};
use crate::units::words;

/// Allowed numbers of masters, as `ephor` has them.
const GROUPS: [u32; 4] = [1, 3, 5, 7];
/// Minimum of `--snapshot-count` of `ephor master`.
const SNAPSHOT_COUNT_MIN: u64 = 10;

type Checked = Result<(), Error>;

fn fail(path: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> Checked {
    Err(Error::new(path, cause, hint))
}

/// Checks an experiment; fails with the first error in the order of the file.
pub(super) fn all(experiment: &Experiment) -> Checked {
    let spec = &experiment.spec;
    name(&experiment.metadata.name)?;
    cluster(spec)?;
    steady_state(spec)?;
    workload(spec)?;
    above_zero("spec.duration", spec.duration)?;
    schedule(spec)?;
    invariants(spec)?;
    above_zero("spec.recoverWithin", spec.recover_within)?;
    for (field, bound) in [("longestWrite", spec.bounds.longest_write), ("noticed", spec.bounds.noticed)] {
        bound.map_or(Ok(()), |bound| above_zero(&format!("spec.bounds.{field}"), bound))?;
    }
    if let Some(unavailable) = spec.abort_if.unavailable_for {
        above_zero("spec.abortIf.unavailableFor", unavailable)?;
    }
    if spec.abort_if.lost_writes == Some(0) {
        return fail("spec.abortIf.lostWrites", "0 would abort at once", "write 1 or more");
    }
    Ok(())
}

fn above_zero(path: &str, duration: Duration) -> Checked {
    if duration.is_zero() {
        return fail(path, "0s is too short", "write a duration above zero, like 10s");
    }
    Ok(())
}

/// Checks that a name is a DNS label of RFC 1123.
fn name(name: &str) -> Checked {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let inside = bytes.iter().all(|b| plain(*b) || *b == b'-');
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| plain(*first) && plain(*last));
    if inside && ends && name.len() <= 63 {
        return Ok(());
    }
    let cause = format!("`{}` is no name", name.escape_debug());
    fail("metadata.name", cause, "write at most 63 of a-z, 0-9 and -, like split-brain")
}

fn cluster(spec: &Spec) -> Checked {
    if spec.cluster.snapshot_count.is_some_and(|count| count < SNAPSHOT_COUNT_MIN) {
        let cause = "there would be nothing but snapshots";
        return fail("spec.cluster.snapshotCount", cause, format!("write {SNAPSHOT_COUNT_MIN} or more"));
    }
    let masters = spec.cluster.masters;
    if GROUPS.contains(&masters) {
        return Ok(());
    }
    let cause = match masters {
        even if even % 2 == 0 => format!("{even} is even, and a group of masters is odd"),
        large => format!("{large} masters are more than a group has"),
    };
    fail("spec.cluster.masters", cause, "write 1, 3, 5 or 7")
}

fn steady_state(spec: &Spec) -> Checked {
    for (i, probe) in spec.steady_state.iter().enumerate() {
        let path = format!("spec.steadyState[{i}]");
        match probe {
            Probe::Write(bound) => above_zero(&format!("{path}.write.within"), bound.within)?,
            Probe::Read(bound) => above_zero(&format!("{path}.read.within"), bound.within)?,
            Probe::Availability(_) => {}
        }
        let same = |other: &Probe| std::mem::discriminant(other) == std::mem::discriminant(probe);
        if spec.steady_state.iter().take(i).any(same) {
            return fail(path, "this probe is there already", "keep one of the two");
        }
    }
    Ok(())
}

fn workload(spec: &Spec) -> Checked {
    let workload = &spec.workload;
    for (field, number) in [("clients", workload.clients), ("rate", workload.rate), ("keys", workload.keys)] {
        if number == 0 {
            return fail(format!("spec.workload.{field}"), "0 is no load", "write 1 or more");
        }
    }
    if workload.mix == Mix::default() {
        return fail("spec.workload.mix", "no operation has a weight", "write at least one, like create: 1");
    }
    Ok(())
}

fn invariants(spec: &Spec) -> Checked {
    if spec.invariants.is_empty() {
        return fail(
            "spec.invariants",
            "nothing must hold",
            "name at least one, like acknowledged-writes-kept",
        );
    }
    let Mix { create, update, delete, get, list, watch, patch, page, .. } = spec.workload.mix;
    let mut seen = BTreeSet::new();
    for (i, invariant) in spec.invariants.iter().enumerate() {
        let path = format!("spec.invariants[{i}]");
        if !seen.insert(invariant) {
            return fail(path, format!("{invariant} is there already"), "keep one of the two");
        }
        let (needs, weights): (&str, &[u32]) = match invariant {
            Invariant::AcknowledgedWritesKept => {
                ("create, update or delete", &[create, update, delete, patch])
            }
            Invariant::Linearizable => ("get or list", &[get, list, page]),
            Invariant::WatchesExact => ("watch", &[watch]),
            _ => continue,
        };
        if weights.iter().all(|weight| *weight == 0) {
            let cause = format!("{invariant} cannot be decided under this load");
            return fail(path, cause, format!("give {needs} a weight in spec.workload.mix"));
        }
    }
    Ok(())
}

fn schedule(spec: &Spec) -> Checked {
    let mut nodes = known(spec);
    for (i, entry) in spec.schedule.iter().enumerate() {
        let path = format!("spec.schedule[{i}]");
        let before = i.checked_sub(1).and_then(|previous| spec.schedule.get(previous));
        times(spec, entry, before, &path)?;
        let path = format!("{path}.fault");
        targets(spec, &entry.fault, &nodes, &path)?;
        details(spec, &entry.fault, &path)?;
        member(&entry.fault, &mut nodes, &path)?;
    }
    overlap::check(spec)
}

/// Returns the nodes that the cluster starts with.
fn known(spec: &Spec) -> BTreeSet<NodeName> {
    let masters = (1..=spec.cluster.masters).filter_map(NodeName::master);
    masters.chain((1..=spec.cluster.workers).filter_map(NodeName::worker)).collect()
}

fn times(spec: &Spec, entry: &Entry, before: Option<&Entry>, path: &str) -> Checked {
    let (at, end) = (words(entry.at), words(spec.duration));
    if entry.at >= spec.duration {
        let cause = format!("{at} is not before the end of the run, {end}");
        return fail(format!("{path}.at"), cause, "begin earlier, or lengthen spec.duration");
    }
    if let Some(before) = before.filter(|before| before.at > entry.at) {
        let cause = format!("{at} is before the entry above, {}", words(before.at));
        return fail(format!("{path}.at"), cause, "list faults in the order in which they begin");
    }
    let Some(lasts) = entry.lasts else { return Ok(()) };
    let path = format!("{path}.for");
    if entry.fault.is_instant() {
        return fail(path, format!("{} happens once", entry.fault), "leave out for");
    }
    above_zero(&path, lasts)?;
    if entry.at.saturating_add(lasts) > spec.duration {
        let cause = format!("{at} and {} are past the end of the run, {end}", words(lasts));
        return fail(path, cause, "leave out for to last until the end, or lengthen spec.duration");
    }
    Ok(())
}

/// Checks that every target exists and is one that the fault may strike.
fn targets(spec: &Spec, fault: &Fault, nodes: &BTreeSet<NodeName>, path: &str) -> Checked {
    let of_workers = matches!(fault, Fault::Worker(_));
    let of_links = fault.links().is_some();
    for (field, target) in fault.targets() {
        let path = format!("{path}.{field}");
        if let Some(stranger) = target.names().find(|name| !nodes.contains(name)) {
            let (masters, workers) = (spec.cluster.masters, spec.cluster.workers);
            let hint = format!("the cluster has {masters} masters (m1, ...) and {workers} workers (w1, ...)");
            return fail(path, format!("there is no {stranger}"), hint);
        }
        let wanted = if of_workers { Role::Worker } else { Role::Master };
        if let Some(other) = target.names().find(|name| name.role() != wanted && !of_links) {
            return match wanted {
                Role::Worker => fail(path, format!("{other} is a master"), "name workers, like w1"),
                Role::Master => {
                    let hint = format!("name masters, or write worker: {{target: {other}, kind: kill}}");
                    fail(path, format!("{other} is a worker"), hint)
                }
            };
        }
        role(spec, target, of_workers, path)?;
    }
    Ok(())
}

/// Checks that the cluster has a node with the target's role.
fn role(spec: &Spec, target: &Target, of_workers: bool, path: String) -> Checked {
    let word = target.word().unwrap_or_default();
    match target {
        Target::Leader | Target::Follower | Target::Minority | Target::Majority if of_workers => {
            fail(path, format!("workers have no {word}"), "write any, all or names, like w1")
        }
        Target::Any | Target::All if of_workers && spec.cluster.workers == 0 => {
            fail(path, "the cluster has no workers", "give spec.cluster.workers")
        }
        Target::Follower | Target::Minority if spec.cluster.masters == 1 => {
            fail(path, format!("one master alone has no {word}"), "write leader, or take 3 masters")
        }
        _ => Ok(()),
    }
}

/// Checks the rules that are special to one fault.
fn details(spec: &Spec, fault: &Fault, path: &str) -> Checked {
    match fault {
        Fault::Cut(Cut::Shape(shape)) => {
            let least = if *shape == Shape::Ring { 5 } else { 3 };
            if spec.cluster.masters < least {
                let cause = format!("{shape} takes {least} masters at least");
                return fail(
                    format!("{path}.cut.shape"),
                    cause,
                    format!("set spec.cluster.masters to {least}"),
                );
            }
        }
        Fault::Slow(Slow { latency, jitter, .. }) => {
            above_zero(&format!("{path}.slow.latency"), *latency)?;
            if let Some(jitter) = jitter.filter(|jitter| jitter > latency) {
                let cause = format!("{} is more than the latency, {}", words(jitter), words(*latency));
                return fail(format!("{path}.slow.jitter"), cause, "no message arrives before it is sent");
            }
        }
        Fault::Lose(lose) if lose.percent.hundredths() == 0 => {
            return fail(format!("{path}.lose.percent"), "0% loses nothing", "write more, like 30%");
        }
        _ => {}
    }
    let Some((from, to, _)) = fault.links() else { return Ok(()) };
    let masters_only = from.names().chain(to.names()).all(|name| name.role() == Role::Master);
    if (from == to && from.is_one()) || (spec.cluster.masters == 1 && masters_only) {
        let cause = format!("there is no link between {from} and {to}");
        return fail(format!("{path}.{}", fault.key()), cause, "name two sides with different nodes");
    }
    Ok(())
}

/// Checks a change of members; adds a master that joins to the known nodes.
fn member(fault: &Fault, nodes: &mut BTreeSet<NodeName>, path: &str) -> Checked {
    let Fault::Member(change) = fault else { return Ok(()) };
    let path = format!("{path}.member");
    if let Member::Add(new) | Member::Replace(Replace { new, .. }) = change {
        let field = if matches!(change, Member::Add(_)) { "add" } else { "replace.new" };
        if new.role() == Role::Worker {
            return fail(format!("{path}.{field}"), format!("{new} is a worker"), "name a master, like m4");
        }
        if !nodes.insert(*new) {
            let cause = format!("{new} is there already");
            return fail(format!("{path}.{field}"), cause, "take a name that no master has");
        }
    }
    if let Some((field, target)) = fault.targets().first().filter(|(_, target)| !target.is_one()) {
        let field = field.strip_prefix("member.").unwrap_or(field);
        let cause = format!("{target} is not one master");
        return fail(format!("{path}.{field}"), cause, "write leader, follower, any or one name");
    }
    if matches!(change, Member::TransferLeader(Target::Leader)) {
        return fail(
            format!("{path}.transferLeader"),
            "the leader leads already",
            "write follower or a name",
        );
    }
    if let Member::Remove(gone) | Member::Replace(Replace { old: gone, .. }) = change {
        gone.names().for_each(|name| _ = nodes.remove(&name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::experiment::Experiment;
    use crate::experiment::tests::{FINE, entry_error, error, with_schedule};

    #[test]
    fn numbers_and_names_have_ranges() {
        for (part, by, expected) in [
            (
                "masters: 3",
                "masters: 4",
                "spec.cluster.masters: 4 is even, and a group of masters is odd; hint: write 1, 3, 5 or 7",
            ),
            (
                "masters: 3",
                "masters: 0",
                "spec.cluster.masters: 0 is even, and a group of masters is odd; hint: write 1, 3, 5 or 7",
            ),
            (
                "masters: 3",
                "masters: 9",
                "spec.cluster.masters: 9 masters are more than a group has; hint: write 1, 3, 5 or 7",
            ),
            (
                "masters: 3",
                "masters: 3, snapshotCount: 9",
                "spec.cluster.snapshotCount: there would be nothing but snapshots; hint: write 10 or more",
            ),
            (
                "name: test",
                "name: Test",
                "metadata.name: `Test` is no name; hint: write at most 63 of a-z, 0-9 and -, like \
                 split-brain",
            ),
            (
                "name: test",
                "name: a-",
                "metadata.name: `a-` is no name; hint: write at most 63 of a-z, 0-9 and -, like split-brain",
            ),
            ("clients: 4", "clients: 0", "spec.workload.clients: 0 is no load; hint: write 1 or more"),
            ("rate: 100", "rate: 0", "spec.workload.rate: 0 is no load; hint: write 1 or more"),
            ("keys: 16", "keys: 0", "spec.workload.keys: 0 is no load; hint: write 1 or more"),
            (
                "{create: 1, get: 2, watch: 1}",
                "{create: 0}",
                "spec.workload.mix: no operation has a weight; hint: write at least one, like create: 1",
            ),
        ] {
            assert_eq!(error(part, by), expected);
        }
    }

    #[test]
    fn bounds_and_invariants_have_a_meaning() {
        for (part, by, expected) in [
            (
                "within: 500ms",
                "within: 0s",
                "spec.steadyState[0].write.within: 0s is too short; hint: write a duration above zero, \
                 like 10s",
            ),
            (
                "availability: {atLeast: 99%}",
                "write: {within: 1s}",
                "spec.steadyState[1]: this probe is there already; hint: keep one of the two",
            ),
            (
                "duration: 60s",
                "duration: 0s",
                "spec.duration: 0s is too short; hint: write a duration above zero, like 10s",
            ),
            (
                "recoverWithin: 20s",
                "recoverWithin: 0s",
                "spec.recoverWithin: 0s is too short; hint: write a duration above zero, like 10s",
            ),
            (
                "unavailableFor: 30s",
                "unavailableFor: 0s",
                "spec.abortIf.unavailableFor: 0s is too short; hint: write a duration above zero, like 10s",
            ),
            (
                "lostWrites: 1",
                "lostWrites: 0",
                "spec.abortIf.lostWrites: 0 would abort at once; hint: write 1 or more",
            ),
            (
                "watches-exact, heals",
                "heals, heals",
                "spec.invariants[3]: heals is there already; hint: keep one of the two",
            ),
            (
                "watch: 1}",
                "watch: 0}",
                "spec.invariants[2]: watches-exact cannot be decided under this load; hint: give watch a \
                 weight in spec.workload.mix",
            ),
            (
                "get: 2",
                "get: 0",
                "spec.invariants[1]: linearizable cannot be decided under this load; hint: give get or \
                 list a \
                 weight in spec.workload.mix",
            ),
            (
                "[acknowledged-writes-kept, linearizable, watches-exact, heals]",
                "[]",
                "spec.invariants: nothing must hold; hint: name at least one, like acknowledged-writes-kept",
            ),
        ] {
            assert_eq!(error(part, by), expected);
        }
    }

    #[test]
    fn a_fault_begins_and_ends_within_the_run() {
        for (entry, expected) in [
            (
                "{at: 60s, fault: {kill: {target: m1}}}",
                "spec.schedule[0].at: 1m is not before the end of the run, 1m; hint: begin earlier, or \
                 lengthen spec.duration",
            ),
            (
                "{at: 55s, for: 10s, fault: {kill: {target: m1}}}",
                "spec.schedule[0].for: 55s and 10s are past the end of the run, 1m; hint: leave out for to \
                 last until the end, or lengthen spec.duration",
            ),
            (
                "{at: 5s, for: 0s, fault: {kill: {target: m1}}}",
                "spec.schedule[0].for: 0s is too short; hint: write a duration above zero, like 10s",
            ),
            (
                "{at: 5s, for: 1s, fault: {disk: {target: m1, kind: bitflip}}}",
                "spec.schedule[0].for: disk bitflip on m1 happens once; hint: leave out for",
            ),
        ] {
            assert_eq!(entry_error(entry), expected);
        }
        let order = with_schedule(
            "- {at: 9s, for: 1s, fault: {kill: {target: m1}}}\n\
             - {at: 5s, for: 1s, fault: {kill: {target: m1}}}",
        );
        assert_eq!(
            order.unwrap_err().to_string(),
            "spec.schedule[1].at: 5s is before the entry above, 9s; hint: list faults in the order in which \
             they begin"
        );
        assert!(
            with_schedule("- {at: 50s, for: 10s, fault: {kill: {target: m1}}}").is_ok(),
            "until the very end"
        );
    }

    #[test]
    fn a_fault_strikes_somebody_it_can_strike() {
        for (fault, expected) in [
            (
                "kill: {target: m4}",
                "kill.target: there is no m4; hint: the cluster has 3 masters (m1, ...) and 1 workers \
                 (w1, ...)",
            ),
            (
                "cut: {from: w2, to: all}",
                "cut.from: there is no w2; hint: the cluster has 3 masters (m1, ...) and 1 workers (w1, ...)",
            ),
            (
                "kill: {target: w1}",
                "kill.target: w1 is a worker; hint: name masters, or write worker: {target: w1, kind: kill}",
            ),
            (
                "worker: {target: m1, kind: kill}",
                "worker.target: m1 is a master; hint: name workers, like w1",
            ),
            (
                "worker: {target: leader, kind: kill}",
                "worker.target: workers have no leader; hint: write any, all or names, like w1",
            ),
            (
                "cut: {shape: ring}",
                "cut.shape: ring takes 5 masters at least; hint: set spec.cluster.masters to 5",
            ),
            (
                "cut: {from: m1, to: m1}",
                "cut: there is no link between m1 and m1; hint: name two sides with different nodes",
            ),
            (
                "hold: {from: leader, to: leader}",
                "hold: there is no link between leader and leader; hint: name two sides with different nodes",
            ),
        ] {
            assert_eq!(
                entry_error(&format!("{{at: 1s, fault: {{{fault}}}}}")),
                format!("spec.schedule[0].fault.{expected}")
            );
        }
        for fine in [
            "cut: {from: w1, to: m1, oneWay: true}",
            "cut: {from: all, to: all}",
            "kill: {target: [m1, m2, m3]}",
        ] {
            let parsed = with_schedule(&format!("- {{at: 1s, fault: {{{fine}}}}}"));
            assert_eq!(parsed.map(|_| ()), Ok(()), "{fine}");
        }
    }

    #[test]
    fn a_fault_has_numbers_and_members_that_make_sense() {
        for (fault, expected) in [
            (
                "slow: {from: m1, to: m2, latency: 0s}",
                "slow.latency: 0s is too short; hint: write a duration above zero, like 10s",
            ),
            (
                "slow: {from: m1, to: m2, latency: 1s, jitter: 2s}",
                "slow.jitter: 2s is more than the latency, 1s; hint: no message arrives before it is sent",
            ),
            (
                "lose: {from: m1, to: m2, percent: 0}",
                "lose.percent: 0% loses nothing; hint: write more, like 30%",
            ),
            ("member: {add: m3}", "member.add: m3 is there already; hint: take a name that no master has"),
            ("member: {add: w2}", "member.add: w2 is a worker; hint: name a master, like m4"),
            (
                "member: {replace: {old: m1, new: m2}}",
                "member.replace.new: m2 is there already; hint: take a name that no master has",
            ),
            (
                "member: {remove: all}",
                "member.remove: all is not one master; hint: write leader, follower, any or one name",
            ),
            (
                "member: {transferLeader: leader}",
                "member.transferLeader: the leader leads already; hint: write follower or a name",
            ),
        ] {
            assert_eq!(
                entry_error(&format!("{{at: 1s, fault: {{{fault}}}}}")),
                format!("spec.schedule[0].fault.{expected}")
            );
        }
    }

    #[test]
    fn a_master_can_be_struck_from_its_joining_to_its_leaving() {
        let add = "- {at: 1s, fault: {member: {add: m4}}}\n";
        let kill = "- {at: 2s, for: 1s, fault: {kill: {target: m4}}}";
        assert!(with_schedule(&format!("{add}{kill}")).is_ok());
        let gone = with_schedule(
            "- {at: 1s, fault: {member: {remove: m3}}}\n- {at: 2s, fault: {kill: {target: m3}}}",
        );
        assert!(
            gone.unwrap_err().to_string().starts_with("spec.schedule[1].fault.kill.target: there is no m3")
        );
    }

    #[test]
    fn a_cluster_of_one_has_a_leader_and_no_links() {
        let one = |fault: &str| {
            let text = format!("{FINE}  schedule: [{{at: 1s, fault: {{{fault}}}}}]\n")
                .replace("masters: 3, workers: 1", "masters: 1");
            Experiment::parse(&text).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(one("kill: {target: leader}"), Ok(()));
        for (fault, cause) in [
            ("kill: {target: follower}", "one master alone has no follower"),
            ("pause: {target: minority}", "one master alone has no minority"),
            ("cut: {shape: leader-alone}", "leader-alone takes 3 masters at least"),
            ("cut: {from: leader, to: all}", "there is no link between leader and all"),
            ("worker: {target: any, kind: kill}", "the cluster has no workers"),
        ] {
            let error = one(fault).unwrap_err();
            assert!(error.contains(cause), "{fault}: {error}");
        }
    }
}
