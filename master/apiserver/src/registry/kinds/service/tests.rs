//! Answers of a stock server to good and bad Services, picked by hand, and what allocation takes and releases.

use std::sync::Arc;

use proto_env::SystemRandom;
use serde_json::{Value, json};
use storage::{Command, Entry, Limits, Mutation, Precondition, Store, Txn};

use super::super::testing::{created, made, reported, updated, with};
use super::allocate::allocate;
use crate::registry::strategy::{AllocationContext, Allocations, ObjectChange};
use crate::settings::ClusterSettings;

fn service() -> Value {
    json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {
        "selector": {"app": "a"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

fn bad(pointer: &str, value: Value) -> Vec<String> {
    created("", "services", &with(&service(), &format!("/spec{pointer}"), value))
}

#[test]
fn a_service_gets_families_and_policies() {
    let spec = &made("", "services", &service())["spec"];
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    assert_eq!((&spec["type"], &spec["internalTrafficPolicy"]), (&json!("ClusterIP"), &json!("Cluster")));
}

#[test]
fn ports_are_there_and_differ() {
    assert_eq!(bad("/ports", json!([])), ["spec.ports: Required value"]);
    assert_eq!(
        bad("/ports/0", json!({})),
        [
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
        ]
    );
    let port = json!({"name": "a", "port": 80});
    let found = bad("/ports", json!([port, port]));
    assert_eq!(found[0], "spec.ports[1].name: Duplicate value: \"a\"");
    assert_eq!(found.len(), 2);
    assert_eq!(
        bad("/ports/0/nodePort", json!(30080)),
        ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
    );
}

#[test]
fn addresses_fit_the_cluster() {
    assert_eq!(
        bad("/clusterIP", json!("x")),
        [
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        ]
    );
    assert_eq!(
        bad("/ipFamilyPolicy", json!("RequireDualStack")),
        [
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
          services"
        ]
    );
    assert_eq!(
        bad("/ipFamilies", json!(["IPv6"])),
        ["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"]
    );
    assert!(bad("/clusterIP", json!("None")).is_empty());
}

#[test]
fn an_external_name_has_no_address() {
    let found = created("", "services", &json!({"spec": {"type": "ExternalName", "clusterIP": "10.96.0.9"}}));
    assert_eq!(
        found,
        [
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.externalName: Required value"
        ]
    );
}

#[test]
fn an_address_stays_and_may_be_left_out() {
    let mut old = made("", "services", &service());
    old["spec"]["clusterIP"] = json!("10.96.0.9");
    old["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
    let (new, found) = updated("", "services", &old, &service());
    assert_eq!((found.len(), &new["spec"]["clusterIP"]), (0, &json!("10.96.0.9")));
    let (_, found) = updated("", "services", &old, &with(&service(), "/spec/clusterIP", json!("10.96.0.8")));
    assert_eq!(found, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"]);
}

#[test]
fn a_change_of_type_takes_what_belonged_to_the_old_one() {
    let mut old = made("", "services", &with(&service(), "/spec/type", json!("NodePort")));
    old["spec"]["clusterIP"] = json!("10.96.0.9");
    old["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
    old["spec"]["ports"][0]["nodePort"] = json!(30080);
    let mut new = old.clone();
    new["spec"]["type"] = json!("ExternalName");
    new["spec"]["externalName"] = json!("example.com");
    new["spec"]["internalTrafficPolicy"] = Value::Null;
    let (new, found) = updated("", "services", &old, &new);
    assert_eq!(found, Vec::<String>::new());
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy"] {
        assert!(new["spec"][key].is_null(), "{key}");
    }
    assert!(new["spec"]["ports"][0]["nodePort"].is_null());
}

#[test]
fn a_balancer_status_has_modes() {
    let old = made("", "services", &with(&service(), "/spec/type", json!("LoadBalancer")));
    let found = reported("", "services", &old, json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}));
    assert_eq!(
        found,
        ["status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set"]
    );
}

/// A store and cluster settings.
struct World {
    store: Arc<Store>,
    settings: ClusterSettings,
    index: u64,
}

impl World {
    fn new() -> Self {
        let store = Store::in_memory(Limits::default()).expect("a store");
        Self { store, settings: ClusterSettings::default(), index: 0 }
    }

    fn allocate(&self, change: ObjectChange<'_>) -> Result<Allocations, String> {
        let context =
            AllocationContext { store: &self.store, settings: &self.settings, random: &SystemRandom };
        allocate(&context, change).map_err(|status| status.message.clone())
    }

    fn commit(&mut self, allocations: Allocations) {
        self.index += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.index.to_le_bytes());
        let txn = Txn { preconditions: allocations.preconditions, mutations: allocations.mutations };
        let command = Command { id, born: self.index - 1, fence: None, txn };
        let entry = Entry { index: self.index, term: 1, commands: vec![command], raise: 0 };
        self.store.apply(vec![entry], Vec::new()).expect("it applies");
    }

    fn create(&mut self, sent: &Value) -> Result<Value, String> {
        let mut new = made("", "services", sent);
        let allocations = self.allocate(ObjectChange::Create { new: &mut new })?;
        self.commit(allocations);
        Ok(new)
    }
}

#[test]
fn a_free_address_comes_from_the_upper_band() {
    let mut world = World::new();
    let first = world.create(&service()).expect("an address");
    let address = first["spec"]["clusterIP"].as_str().expect("a text").to_owned();
    assert_eq!(first["spec"]["clusterIPs"], json!([address]));
    let address: std::net::Ipv4Addr = address.parse().expect("an address");
    assert!(address > std::net::Ipv4Addr::new(10, 96, 1, 0), "{address}");
}

#[test]
fn an_address_is_given_once() {
    let mut world = World::new();
    let wanted = with(&service(), "/spec/clusterIP", json!("10.96.0.10"));
    let held = world.create(&wanted).expect("it is free");
    assert_eq!(
        world.create(&wanted),
        Err("Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP \
             10.96.0.10: provided IP is already allocated"
            .to_owned())
    );
    let released = world.allocate(ObjectChange::Delete { old: &held }).expect("it is released");
    world.commit(released);
    assert!(world.create(&wanted).is_ok());
    assert!(world.create(&with(&service(), "/spec/clusterIP", json!("10.97.0.1"))).is_err());
    assert!(world.create(&with(&service(), "/spec/clusterIP", json!("10.96.0.0"))).is_err());
}

#[test]
fn two_that_race_for_an_address_cannot_both_commit() {
    let world = World::new();
    let mut new = made("", "services", &with(&service(), "/spec/clusterIP", json!("10.96.0.10")));
    let allocations = world.allocate(ObjectChange::Create { new: &mut new }).expect("it is free");
    let key = "/allocations/clusterips/10.96.0.10".to_owned();
    assert!(allocations.preconditions.contains(&Precondition::Absent(key.clone())));
    assert!(allocations.mutations.iter().any(|m| matches!(m, Mutation::Put { key: k, .. } if *k == key)));
}

#[test]
fn node_ports_are_in_their_range_and_shared_by_protocols() {
    let mut world = World::new();
    let mut wanted = with(&service(), "/spec/type", json!("NodePort"));
    wanted["spec"]["ports"] =
        json!([{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "protocol": "TCP"}]);
    let made = world.create(&wanted).expect("ports");
    let ports = [&made["spec"]["ports"][0]["nodePort"], &made["spec"]["ports"][1]["nodePort"]];
    assert_eq!(ports[0], ports[1]);
    assert!((30000..=32767).contains(&ports[0].as_i64().expect("a number")));
    let mut outside = with(&service(), "/spec/type", json!("NodePort"));
    outside["spec"]["ports"][0]["nodePort"] = json!(80);
    assert_eq!(
        world.create(&outside),
        Err("Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid \
             range. The range of valid ports is 30000-32767"
            .to_owned())
    );
}

#[test]
fn a_change_to_an_external_name_releases_everything() {
    let mut world = World::new();
    let old = world.create(&with(&service(), "/spec/type", json!("NodePort"))).expect("it is made");
    let mut new =
        made("", "services", &json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}));
    let allocations = world.allocate(ObjectChange::Update { new: &mut new, old: &old }).expect("it changes");
    assert_eq!((allocations.preconditions.len(), allocations.mutations.len()), (0, 2));
    world.commit(allocations);
    assert!(world.store.is_empty());
}

#[test]
fn an_update_without_change_allocates_nothing() {
    let mut world = World::new();
    let old = world.create(&with(&service(), "/spec/type", json!("NodePort"))).expect("it is made");
    let mut new = old.clone();
    let allocations = world.allocate(ObjectChange::Update { new: &mut new, old: &old }).expect("it changes");
    assert!(allocations.mutations.is_empty() && allocations.preconditions.is_empty());
    assert_eq!(new, old);
}
