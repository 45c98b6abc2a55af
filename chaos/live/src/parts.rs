//! Splits a fault into the effects that each node's agent must apply, with the nodes' addresses at that
//! moment. Returns an error with the reason for faults that no agent can inject. Does no I/O. `inject` calls
//! it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use chaos_spec::fault::{BusyKind, DiskKind, Fault, Worker, WorkerKind};
use chaos_spec::resolve::Link;
use chaos_spec::{Group, NodeName, Target};

use crate::effect::{ALL_PACKETS, BusyEffect, Delay, DiskEffect, Drop, Effect};

/// Effects with the node that each is for.
pub type Parts = Vec<(NodeName, Effect)>;

/// Returns the parts of a fault on `group` and `workers` (both without nodes that are struck already, in
/// random order). `address` returns a node's address; `seed` decides what a power loss takes away.
///
/// # Errors
/// Fails with the reason why the fault cannot be injected into a live cluster.
pub fn of(
    fault: &Fault,
    group: &Group,
    workers: &[NodeName],
    seed: u64,
    address: impl Fn(NodeName) -> Option<IpAddr>,
) -> Result<Parts, String> {
    let on = |target: &Target, effect: Effect| -> Parts {
        group.nodes(target).into_iter().map(|node| (node, effect.clone())).collect()
    };
    let parts = match fault {
        Fault::Cut(cut) => drops(&group.cut(cut), ALL_PACKETS, address),
        Fault::Lose(lose) => {
            drops(&group.links(&lose.from, &lose.to, lose.one_way), lose.percent.hundredths(), address)
        }
        Fault::Kill(strike) => on(&strike.target, Effect::Kill),
        Fault::Pause(strike) => on(&strike.target, Effect::Pause),
        Fault::Powerloss(strike) => on(&strike.target, Effect::PowerLoss { seed }),
        Fault::Disk(disk) => on(&disk.target, Effect::Disk(disk_effect(disk.kind)?)),
        Fault::Busy(busy) => {
            let kind = match busy.kind {
                BusyKind::Processor => BusyEffect::Processor,
                BusyKind::Disk => BusyEffect::Disk,
            };
            on(&busy.target, Effect::Busy(kind))
        }
        Fault::Worker(worker) => on_workers(worker, group, workers, address),
        Fault::Slow(slow) => {
            let (latency, jitter) = (millis(slow.latency), millis(slow.jitter.unwrap_or_default()));
            delays(&group.links(&slow.from, &slow.to, slow.one_way), Some(latency), jitter, address)
        }
        Fault::Hold(hold) => delays(&group.links(&hold.from, &hold.to, hold.one_way), None, 0, address),
        Fault::Clock(_) => {
            return Err("the wall clock is the machine's: a process cannot have one of its own".into());
        }
        Fault::Member(_) => return Err("members are changed through a master, not by an agent".into()),
    };
    if parts.is_empty() { Err("nobody was there to be struck".into()) } else { Ok(parts) }
}

fn disk_effect(kind: DiskKind) -> Result<DiskEffect, String> {
    match kind {
        DiskKind::Eio => Ok(DiskEffect::Eio),
        DiskKind::Enospc => Ok(DiskEffect::Enospc),
        DiskKind::SlowFsync { delay } => Ok(DiskEffect::SlowFsync { delay_ms: millis(delay) }),
        DiskKind::Iops { limit } => Ok(DiskEffect::Iops { limit }),
        DiskKind::Bitflip | DiskKind::Truncate => Err("what is damaged for good no agent can undo".into()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Groups links by receiver; returns the addresses of each receiver's senders.
fn senders(links: &[Link], address: impl Fn(NodeName) -> Option<IpAddr>) -> BTreeMap<NodeName, Vec<IpAddr>> {
    let mut from: BTreeMap<NodeName, Vec<IpAddr>> = BTreeMap::new();
    for (sender, receiver) in links {
        from.entry(*receiver).or_default().extend(address(*sender));
    }
    from
}

/// Makes the receiver of every link drop what arrives.
fn drops(links: &[Link], of_ten_thousand: u32, address: impl Fn(NodeName) -> Option<IpAddr>) -> Parts {
    let drop = |from| Effect::Drop(Drop { from, to: Vec::new(), of_ten_thousand });
    senders(links, address).into_iter().map(|(node, from)| (node, drop(from))).collect()
}

/// Makes the receiver of every link delay what arrives.
fn delays(
    links: &[Link],
    latency_ms: Option<u64>,
    jitter_ms: u64,
    address: impl Fn(NodeName) -> Option<IpAddr>,
) -> Parts {
    let delay = |from| Effect::Delay(Delay { from, latency_ms, jitter_ms });
    senders(links, address).into_iter().map(|(node, from)| (node, delay(from))).collect()
}

fn on_workers(
    worker: &Worker,
    group: &Group,
    workers: &[NodeName],
    address: impl Fn(NodeName) -> Option<IpAddr>,
) -> Parts {
    let struck: Vec<NodeName> = match &worker.target {
        Target::All => workers.to_vec(),
        Target::Nodes(nodes) => workers.iter().filter(|node| nodes.contains(node)).copied().collect(),
        _ => workers.iter().take(1).copied().collect(),
    };
    let effect = match worker.kind {
        WorkerKind::Kill => Effect::Kill,
        WorkerKind::Pause => Effect::Pause,
        WorkerKind::Cut => {
            let masters: Vec<IpAddr> = group.nodes(&Target::All).into_iter().filter_map(address).collect();
            Effect::Drop(Drop { from: masters.clone(), to: masters, of_ten_thousand: ALL_PACKETS })
        }
    };
    struck.into_iter().map(|node| (node, effect.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn m(number: u32) -> NodeName {
        NodeName::master(number).unwrap()
    }

    fn at(node: NodeName) -> Option<IpAddr> {
        format!("10.0.{}.{}", if node.to_string().starts_with('m') { 0 } else { 1 }, node.number())
            .parse()
            .ok()
    }

    fn parts(fault: Value) -> Result<Vec<(String, Value)>, String> {
        let fault: Fault = from_value(fault).unwrap();
        let group = Group::new(vec![m(2), m(1), m(3)], Some(m(2)));
        let workers = [2, 1].map(|number| NodeName::worker(number).unwrap());
        let parts = of(&fault, &group, &workers, 7, at)?;
        Ok(parts.into_iter().map(|(node, effect)| (node.to_string(), json!(effect))).collect())
    }

    fn drop(from: &[&str], to: &[&str], of: u32) -> Value {
        json!({"drop": {"from": from, "to": to, "ofTenThousand": of}})
    }

    #[test]
    fn a_cut_is_dropped_where_it_arrives() {
        assert_eq!(
            parts(json!({"cut": {"shape": "leader-alone"}})).unwrap(),
            [
                ("m1".into(), drop(&["10.0.0.2"], &[], 10_000)),
                ("m2".into(), drop(&["10.0.0.1", "10.0.0.3"], &[], 10_000)),
                ("m3".into(), drop(&["10.0.0.2"], &[], 10_000)),
            ]
        );
        assert_eq!(
            parts(json!({"cut": {"from": "all", "to": "leader", "oneWay": true}})).unwrap(),
            [("m2".into(), drop(&["10.0.0.1", "10.0.0.3"], &[], 10_000))]
        );
        assert_eq!(
            parts(json!({"lose": {"from": "m1", "to": "m3", "oneWay": true, "percent": "12.5%"}})).unwrap(),
            [("m3".into(), drop(&["10.0.0.1"], &[], 1250))]
        );
    }

    #[test]
    fn what_is_slow_or_held_is_late_where_it_arrives() {
        assert_eq!(
            parts(json!({"slow": {"from": "m1", "to": "m3", "latency": "80ms", "jitter": "20ms"}})).unwrap(),
            [
                ("m1".into(), json!({"delay": {"from": ["10.0.0.3"], "latencyMs": 80, "jitterMs": 20}})),
                ("m3".into(), json!({"delay": {"from": ["10.0.0.1"], "latencyMs": 80, "jitterMs": 20}})),
            ]
        );
        assert_eq!(
            parts(json!({"hold": {"from": "leader", "to": "m1", "oneWay": true}})).unwrap(),
            [("m1".into(), json!({"delay": {"from": ["10.0.0.2"], "latencyMs": null, "jitterMs": 0}}))]
        );
    }

    #[test]
    fn strikes_go_to_who_is_meant() {
        assert_eq!(parts(json!({"kill": {"target": "leader"}})).unwrap(), [("m2".into(), json!("kill"))]);
        assert_eq!(
            parts(json!({"powerloss": {"target": ["m1"]}})).unwrap(),
            [("m1".into(), json!({"powerLoss": {"seed": 7}}))]
        );
        assert_eq!(
            parts(json!({"disk": {"target": "m3", "kind": "slow-fsync", "delay": "500ms"}})).unwrap(),
            [("m3".into(), json!({"disk": {"slowFsync": {"delayMs": 500}}}))]
        );
        let masters = ["10.0.0.2", "10.0.0.1", "10.0.0.3"];
        assert_eq!(
            parts(json!({"worker": {"target": "any", "kind": "cut"}})).unwrap(),
            [("w2".into(), drop(&masters, &masters, 10_000))]
        );
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        for (fault, why) in [
            (json!({"clock": {"target": "m1", "skew": "+5s"}}), "wall clock"),
            (json!({"disk": {"target": "m1", "kind": "bitflip"}}), "no agent can undo"),
            (json!({"kill": {"target": "m9"}}), "nobody was there"),
        ] {
            let said = parts(fault).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
