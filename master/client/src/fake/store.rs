//! The objects of the fake API. Called by `fake.rs` for requests, and by tests that act as a node's agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

/// A kind that the fake API serves.
pub(super) struct FakeKind {
    pub group: &'static str,
    pub resource: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

const fn served(
    group: &'static str,
    resource: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> FakeKind {
    FakeKind { group, resource, kind, namespaced }
}

pub(super) const SERVED: &[FakeKind] = &[
    served("", "pods", "Pod", true),
    served("", "services", "Service", true),
    served("", "endpoints", "Endpoints", true),
    served("", "configmaps", "ConfigMap", true),
    served("", "serviceaccounts", "ServiceAccount", true),
    served("", "events", "Event", true),
    served("", "nodes", "Node", false),
    served("", "namespaces", "Namespace", false),
    served("apps", "deployments", "Deployment", true),
    served("apps", "replicasets", "ReplicaSet", true),
    served("discovery.k8s.io", "endpointslices", "EndpointSlice", true),
];

/// The resource and object that a request's path names.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub group: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

impl Target {
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let part = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        Some(Self {
            group: group.to_owned(),
            resource: part(0),
            namespace: namespace.to_owned(),
            name: part(1),
            subresource: part(2),
        })
    }

    fn key(&self, namespace: &str, name: &str) -> Key {
        (self.group.clone(), self.resource.clone(), namespace.to_owned(), name.to_owned())
    }

    fn holds(&self, key: &Key) -> bool {
        key.0 == self.group
            && key.1 == self.resource
            && (self.namespace.is_empty() || key.2 == self.namespace)
    }
}

/// Key of an object: group, resource, namespace, name.
type Key = (String, String, String, String);

/// Why a request is refused.
#[derive(Debug)]
pub struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn bad(message: &str) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.to_owned() }
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self { code: 404, reason: "NotFound", message: format!("{what} not found") }
    }

    fn conflict(reason: &'static str, what: &str) -> Self {
        Self { code: 409, reason, message: format!("{what}: {reason}") }
    }
}

struct State {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    names: u64,
    /// All changes so far: revision, key, event.
    log: Vec<(u64, Key, Value)>,
}

/// Revision of an API without objects. Not 0, with which a list or a watch asks for "any" revision; and
/// never given to a write, or a watch from an empty list would start before the first write.
const EMPTY_REVISION: u64 = 1;

/// A Kubernetes API in memory.
pub struct FakeApi {
    /// Resource whose lists are delayed, and the delay; `None` for no delay.
    slow: Mutex<Option<(&'static str, Duration)>>,
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

impl FakeApi {
    /// Creates an API without objects.
    pub fn new() -> Arc<Self> {
        let state = State { objects: BTreeMap::new(), revision: EMPTY_REVISION, names: 0, log: Vec::new() };
        Arc::new(Self {
            slow: Mutex::default(),
            state: Mutex::new(state),
            revision: watch::Sender::new(EMPTY_REVISION),
        })
    }

    /// Answers lists of `resource` only after `delay`.
    pub fn slow_lists(&self, resource: &'static str, delay: Duration) {
        *self.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some((resource, delay));
    }

    /// Waits for the delay of lists of this resource, if any.
    pub(super) async fn hold_up(&self, resource: &str) {
        let slow = *self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, delay)) = slow.filter(|(slow, _)| *slow == resource) {
            tokio::time::sleep(delay).await;
        }
    }

    /// Returns all objects of a resource (`pods`, `deployments`, ...), in key order.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|(key, _)| key.1 == resource).map(|(_, value)| value.clone()).collect()
    }

    /// Creates an object with spec and status at once.
    pub fn add(&self, resource: &str, object: Value) -> Value {
        let group = SERVED.iter().find(|kind| kind.resource == resource).map_or("", |kind| kind.group);
        let target = Target {
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: text(&object, "/metadata/namespace"),
            name: String::new(),
            subresource: String::new(),
        };
        self.create(&target, object).unwrap_or_default()
    }

    /// Applies `change` to every object of a resource, and writes those for which it returns true.
    pub fn change(&self, resource: &str, mut change: impl FnMut(&mut Value) -> bool) {
        let mut state = self.lock();
        let keys: Vec<_> = state.objects.keys().filter(|key| key.1 == resource).cloned().collect();
        for key in keys {
            let mut value = state.objects.get(&key).cloned().unwrap_or_default();
            let before = value["spec"].clone();
            if change(&mut value) {
                if before != value["spec"] {
                    bump_generation(&mut value);
                }
                self.write(&mut state, key, value, "MODIFIED");
            }
        }
    }

    /// Removes one object at once; does nothing when it does not exist.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let found =
            state.objects.iter().find(|(key, _)| (&*key.1, &*key.2, &*key.3) == (resource, namespace, name));
        if let Some((key, value)) = found.map(|(key, value)| (key.clone(), value.clone())) {
            self.write(&mut state, key, value, "DELETED");
        }
    }

    /// Waits until `done` holds, checking after every change.
    pub async fn wait_until(&self, mut done: impl FnMut(&Self) -> bool) {
        let mut revision = self.revision.subscribe();
        while !done(self) {
            if revision.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &mut State, key: Key, mut value: Value, event: &str) -> Value {
        state.revision += 1;
        value["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        if event == "DELETED" {
            state.objects.remove(&key);
        } else {
            state.objects.insert(key.clone(), value.clone());
        }
        let revision = state.revision;
        state.log.push((revision, key, json!({"type": event, "object": value})));
        self.revision.send_replace(revision);
        value
    }

    pub(super) fn list(&self, target: &Target) -> Value {
        let state = self.lock();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(key, _)| target.holds(key))
            .map(|(_, value)| value.clone())
            .collect();
        json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": state.revision.to_string()}})
    }

    pub(super) fn get(&self, target: &Target) -> Result<Value, Refusal> {
        let key = target.key(&target.namespace, &target.name);
        self.lock().objects.get(&key).cloned().ok_or_else(|| Refusal::not_found(&target.name))
    }

    pub(super) fn create(&self, target: &Target, mut object: Value) -> Result<Value, Refusal> {
        let mut state = self.lock();
        state.names += 1;
        let mut name = text(&object, "/metadata/name");
        if name.is_empty() {
            name = format!("{}{:05}", text(&object, "/metadata/generateName"), state.names);
        }
        let key = target.key(&target.namespace, &name);
        if state.objects.contains_key(&key) {
            return Err(Refusal::conflict("AlreadyExists", &name));
        }
        let kind = SERVED.iter().find(|kind| kind.group == target.group && kind.resource == target.resource);
        let version = if target.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", target.group) };
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind.map_or("", |kind| kind.kind));
        object["metadata"]["name"] = json!(name);
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        object["metadata"]["uid"] = json!(format!("uid-{}", state.names));
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        Ok(self.write(&mut state, key, object, "ADDED"))
    }

    pub(super) fn replace(&self, target: &Target, object: Value) -> Result<Value, Refusal> {
        let sent = text(&object, "/metadata/resourceVersion");
        self.update(target, |current| {
            if !sent.is_empty() && sent != text(current, "/metadata/resourceVersion") {
                return Err(Refusal::conflict("Conflict", &target.name));
            }
            let mut new = object.clone();
            if target.subresource == "status" {
                new = current.clone();
                new["status"] = object["status"].clone();
                new["metadata"]["annotations"] = object["metadata"]["annotations"].clone();
            } else {
                new["status"] = current["status"].clone();
            }
            new["metadata"]["generation"] = current["metadata"]["generation"].clone();
            Ok(new)
        })
    }

    pub(super) fn patch(&self, target: &Target, patch: &Value, strategic: bool) -> Result<Value, Refusal> {
        self.update(target, |current| {
            let sent = text(patch, "/metadata/resourceVersion");
            if !sent.is_empty() && sent != text(current, "/metadata/resourceVersion") {
                return Err(Refusal::conflict("Conflict", &target.name));
            }
            let mut new = current.clone();
            merge(&mut new, patch, strategic);
            Ok(new)
        })
    }

    fn update(
        &self,
        target: &Target,
        change: impl Fn(&Value) -> Result<Value, Refusal>,
    ) -> Result<Value, Refusal> {
        let mut state = self.lock();
        let key = target.key(&target.namespace, &target.name);
        let current = state.objects.get(&key).cloned().ok_or_else(|| Refusal::not_found(&target.name))?;
        let mut new = change(&current)?;
        new["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
        if new == current {
            return Ok(current);
        }
        if new["spec"] != current["spec"] {
            bump_generation(&mut new);
        }
        Ok(self.write(&mut state, key, new, "MODIFIED"))
    }

    pub(super) fn bind(&self, target: &Target, binding: &Value) -> Result<Value, Refusal> {
        let whole = Target { subresource: String::new(), ..target.clone() };
        self.update(&whole, |current| {
            if !text(current, "/spec/nodeName").is_empty() {
                return Err(Refusal::conflict("Conflict", &target.name));
            }
            let mut new = current.clone();
            new["spec"]["nodeName"] = binding["target"]["name"].clone();
            Ok(new)
        })?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
    }

    /// Deletes an object as the API does: with foreground or orphan propagation the owner stays, with a
    /// finalizer.
    pub(super) fn delete(&self, target: &Target, options: &Value) -> Result<Value, Refusal> {
        let mut state = self.lock();
        let key = target.key(&target.namespace, &target.name);
        let mut value = state.objects.get(&key).cloned().ok_or_else(|| Refusal::not_found(&target.name))?;
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            value["metadata"]["finalizers"] = json!([finalizer]);
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return Ok(self.write(&mut state, key, value, "MODIFIED"));
        }
        Ok(self.write(&mut state, key, value, "DELETED"))
    }

    pub(super) fn delete_all(&self, target: &Target) -> Result<Value, Refusal> {
        let names: Vec<_> = {
            let state = self.lock();
            state.objects.keys().filter(|key| target.holds(key)).map(|key| key.3.clone()).collect()
        };
        for name in names {
            self.delete(&Target { name, ..target.clone() }, &Value::Null)?;
        }
        Ok(self.list(target))
    }

    /// Waits for events of the target after revision `from`, and returns them with the revision they reach.
    pub(super) async fn events_after(&self, target: &Target, from: u64) -> (Vec<Value>, u64) {
        let mut revision = self.revision.subscribe();
        loop {
            let (events, now): (Vec<Value>, u64) = {
                let state = self.lock();
                let seen = state.log.partition_point(|(at, ..)| *at <= from);
                let new = state.log[seen..].iter().filter(|(_, key, _)| target.holds(key));
                (new.map(|(_, _, event)| event.clone()).collect(), state.revision)
            };
            if !events.is_empty() {
                return (events, now);
            }
            if revision.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

pub(super) fn resource_list(group: &str) -> Value {
    let resources: Vec<_> = SERVED
        .iter()
        .filter(|kind| kind.group == group)
        .map(|kind| {
            let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
            json!({"name": kind.resource, "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": verbs})
        })
        .collect();
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn bump_generation(value: &mut Value) {
    let generation = value["metadata"]["generation"].as_i64().unwrap_or(0);
    value["metadata"]["generation"] = json!(generation + 1);
}

/// Applies a JSON merge patch (RFC 7386); with `strategic`, lists of conditions and owners are merged by
/// their keys.
fn merge(current: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(fields) = patch else {
        *current = patch.clone();
        return;
    };
    if !current.is_object() {
        *current = json!({});
    }
    for (name, value) in fields {
        let key = match name.as_str() {
            "conditions" => Some("type"),
            "ownerReferences" => Some("uid"),
            _ => None,
        };
        match (key.filter(|_| strategic), value) {
            (Some(key), Value::Array(items)) => merge_list(&mut current[name], items, key),
            (_, Value::Null) => {
                if let Some(current) = current.as_object_mut() {
                    current.remove(name);
                }
            }
            _ => merge(&mut current[name], value, strategic),
        }
    }
}

fn merge_list(current: &mut Value, items: &[Value], key: &str) {
    let mut list = current.as_array().cloned().unwrap_or_default();
    for item in items {
        let position = list.iter().position(|own| own[key] == item[key]);
        match (position, item["$patch"] == "delete") {
            (Some(position), true) => {
                list.remove(position);
            }
            (None, true) => {}
            (Some(position), false) => merge(&mut list[position], item, true),
            (None, false) => list.push(item.clone()),
        }
    }
    *current = Value::Array(list);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_from_an_empty_list_sees_the_first_object() {
        let api = FakeApi::new();
        let nodes = Target::parse("/api/v1/nodes").unwrap();
        let listed = text(&api.list(&nodes), "/metadata/resourceVersion").parse().unwrap();
        api.add("nodes", json!({"metadata": {"name": "first"}}));
        let waited =
            tokio::time::timeout(std::time::Duration::from_secs(10), api.events_after(&nodes, listed));
        let (events, _) = waited.await.expect("the first object is an event");
        assert_eq!(events[0]["object"]["metadata"]["name"], "first");
    }
}
