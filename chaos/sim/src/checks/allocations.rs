//! Checks that transactions are whole (atomicity: Gray 1981): a Service, its cluster IP and its node port are
//! objects of their own that one transaction writes and one deletes, so in every state of a replica each is
//! there together with the others, and no two Services have the same address or port. Clients create, change
//! and delete Services, and compete for few ports.

use std::collections::{BTreeMap, BTreeSet};

use chaos_oracle::calls::KEY_PREFIX;
use chaos_oracle::kind::Kind;
use serde_json::Value;
use storage::Store;

use crate::workload::NAMESPACE;

/// Name of this check in reports.
pub const CHECK: &str = "transactions-whole";
/// Prefix of the keys of addresses and ports that Services hold.
const TAKEN: &str = "/allocations/";

/// Clients' Services by name, each with the keys of the addresses and ports that its object names.
type Held = BTreeMap<String, BTreeSet<String>>;
/// Key of an address or port with the clients' Service that has taken it.
type Taken = BTreeMap<String, String>;

/// Reads a replica, and returns where it contradicts itself.
pub fn check(store: &Store) -> Vec<String> {
    let mut held = Held::new();
    let prefix = Kind::Service.store_prefix(NAMESPACE);
    let services = store.range(&prefix, None, 0, None).map(|page| page.objects).unwrap_or_default();
    for service in services {
        let Some(name) = service.key.strip_prefix(&prefix).filter(|name| name.starts_with(KEY_PREFIX)) else {
            continue;
        };
        let object: Value = serde_json::from_slice(&service.value).unwrap_or_default();
        held.insert(name.to_owned(), keys(&object["spec"]));
    }
    let mut taken = Taken::new();
    let records = store.range(TAKEN, None, 0, None).map(|page| page.objects).unwrap_or_default();
    for record in records {
        let value: Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let owner = value["service"].as_str().and_then(|owner| owner.strip_prefix(NAMESPACE));
        let name = owner.and_then(|owner| owner.strip_prefix('/'));
        if let Some(name) = name.filter(|name| name.starts_with(KEY_PREFIX)) {
            taken.insert(record.key.to_string(), name.to_owned());
        }
    }
    differences(&held, &taken)
}

/// Returns the keys of the addresses and ports that a Service's spec names.
fn keys(spec: &Value) -> BTreeSet<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let addresses = list(&spec["clusterIPs"]);
    let addresses = addresses.iter().filter_map(Value::as_str).map(|ip| format!("{TAKEN}clusterips/{ip}"));
    let ports = list(&spec["ports"]);
    let ports = ports.iter().filter_map(|port| port["nodePort"].as_u64());
    addresses.chain(ports.map(|port| format!("{TAKEN}nodeports/{port}"))).collect()
}

fn differences(held: &Held, taken: &Taken) -> Vec<String> {
    let mut found = Vec::new();
    for (service, keys) in held {
        for key in keys {
            match taken.get(key) {
                Some(by) if by == service => {}
                Some(by) => found.push(format!("Service {service} has {key}, which {by} has taken")),
                None => found.push(format!("Service {service} has {key}, which nobody has taken")),
            }
        }
    }
    for (key, by) in taken {
        if !held.get(by).is_some_and(|keys| keys.contains(key)) {
            found.push(format!("{key} is taken by Service {by}, which does not have it"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_and_what_it_has_taken_are_there_together() {
        let spec = json!({"clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "nodePort": 30_001}]});
        let held = Held::from([("reg-1".to_owned(), keys(&spec))]);
        let taken = |of: &[(&str, &str)]| -> Taken {
            of.iter().map(|(key, by)| (format!("{TAKEN}{key}"), (*by).to_owned())).collect()
        };
        let (ip, port) = ("clusterips/10.96.0.7", "nodeports/30001");
        assert!(differences(&held, &taken(&[(ip, "reg-1"), (port, "reg-1")])).is_empty());
        let found = differences(&held, &taken(&[(ip, "reg-1")]));
        assert_eq!(found, ["Service reg-1 has /allocations/nodeports/30001, which nobody has taken"]);
        let found = differences(&held, &taken(&[(ip, "reg-1"), (port, "reg-2")]));
        assert_eq!(found.len(), 2, "{found:?}");
        let found = differences(&Held::new(), &taken(&[(ip, "reg-1")]));
        assert_eq!(
            found,
            ["/allocations/clusterips/10.96.0.7 is taken by Service reg-1, which does not have it"]
        );
    }
}
