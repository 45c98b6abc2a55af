//! Lists and watches of typed objects that go on when an object does not decode: it arrives as
//! [`Decoded::Broken`] with its name and the reason, among the others. The informers of masters decode
//! through [`list`] and [`event`]; workers watch `Api<Decoded<K>>`. [`BrokenObjects`] remembers which
//! objects are broken.
//!
//! An object may be broken because its stored form breaks a rule of the typed client that the server does
//! not have (a time before year 0, say), or because a newer server stores fields that this binary does not
//! know.

mod registry;

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ObjectList;
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub use registry::BrokenObjects;

/// An object of kind `K`, or the metadata of an object that does not decode.
#[derive(Clone, Debug)]
pub enum Decoded<K> {
    /// The decoded object.
    Object(K),
    /// An object that does not decode.
    Broken(Box<Broken>),
}

/// An object that does not decode.
#[derive(Clone, Debug, Default)]
pub struct Broken {
    /// Namespace, name, UID and resourceVersion as far as they could be read; all other fields are empty.
    pub meta: ObjectMeta,
    /// The decoder's error message.
    pub error: String,
}

impl Broken {
    fn new(value: &Value, error: &serde_json::Error) -> Self {
        let field = |name: &str| value["metadata"][name].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            namespace: field("namespace"),
            name: field("name"),
            uid: field("uid"),
            resource_version: field("resourceVersion"),
            ..ObjectMeta::default()
        };
        Self { meta, error: error.to_string() }
    }
}

impl<K: DeserializeOwned> Decoded<K> {
    fn from_value(value: Value) -> Self {
        match K::deserialize(&value) {
            Ok(object) => Self::Object(object),
            Err(error) => Self::Broken(Box::new(Broken::new(&value, &error))),
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from_value)
    }
}

impl<K: kube::Resource> kube::Resource for Decoded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(types: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(types)
    }

    fn group(types: &Self::DynamicType) -> Cow<'_, str> {
        K::group(types)
    }

    fn version(types: &Self::DynamicType) -> Cow<'_, str> {
        K::version(types)
    }

    fn plural(types: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(types)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Object(object) => object.meta(),
            Self::Broken(broken) => &broken.meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Object(object) => object.meta_mut(),
            Self::Broken(broken) => &mut broken.meta,
        }
    }
}

/// Decodes the JSON of a list. Items are decoded one by one only if the list does not decode as a whole,
/// which costs about twice as much.
///
/// # Errors
/// Fails if `text` is not JSON or not a list.
pub fn list<K: DeserializeOwned + Clone>(text: &str) -> Result<ObjectList<Decoded<K>>, serde_json::Error> {
    if let Ok(list) = serde_json::from_str::<ObjectList<K>>(text) {
        let ObjectList { types, metadata, items } = list;
        return Ok(ObjectList { types, metadata, items: items.into_iter().map(Decoded::Object).collect() });
    }
    serde_json::from_str(text)
}

/// Decodes one line of a watch, as [`list`] does.
///
/// # Errors
/// Fails if `line` is not JSON or not a watch event.
pub fn event<K: DeserializeOwned>(line: &str) -> Result<WatchEvent<Decoded<K>>, serde_json::Error> {
    match serde_json::from_str::<WatchEvent<K>>(line) {
        Ok(WatchEvent::Added(object)) => Ok(WatchEvent::Added(Decoded::Object(object))),
        Ok(WatchEvent::Modified(object)) => Ok(WatchEvent::Modified(Decoded::Object(object))),
        Ok(WatchEvent::Deleted(object)) => Ok(WatchEvent::Deleted(Decoded::Object(object))),
        Ok(WatchEvent::Bookmark(bookmark)) => Ok(WatchEvent::Bookmark(bookmark)),
        Ok(WatchEvent::Error(status)) => Ok(WatchEvent::Error(status)),
        Err(_) => serde_json::from_str(line),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::Resource;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, created: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7",
            "creationTimestamp": created
        }})
    }

    const GOOD: &str = "2026-01-01T00:00:00Z";
    /// A time that RFC 3339 cannot express.
    const BAD: &str = "-001-12-31T23:00:00Z";

    #[test]
    fn a_list_with_one_broken_object_has_all_others() {
        let text = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
            "items": [pod("a", GOOD), pod("b", BAD), pod("c", GOOD)]})
        .to_string();
        assert!(serde_json::from_str::<ObjectList<Pod>>(&text).is_err(), "the typed client refuses it");
        let list = list::<Pod>(&text).unwrap();
        assert_eq!(list.metadata.resource_version.as_deref(), Some("9"));
        let names: Vec<_> = list.items.iter().map(|pod| pod.meta().name.clone().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let Decoded::Broken(broken) = &list.items[1] else { panic!("b decodes: {:?}", list.items[1]) };
        assert_eq!(broken.meta.uid.as_deref(), Some("uid-b"));
        assert_eq!(broken.meta.resource_version.as_deref(), Some("7"));
        assert!(matches!(list.items[2], Decoded::Object(_)));
    }

    #[test]
    fn an_event_with_a_broken_object_says_which_and_why() {
        let line = json!({"type": "MODIFIED", "object": pod("b", BAD)}).to_string();
        let Ok(WatchEvent::Modified(Decoded::Broken(broken))) = event::<Pod>(&line) else {
            panic!("not a broken object")
        };
        assert_eq!(broken.meta.name.as_deref(), Some("b"));
        assert!(!broken.error.is_empty());
        let line = json!({"type": "DELETED", "object": pod("a", GOOD)}).to_string();
        assert!(matches!(event::<Pod>(&line), Ok(WatchEvent::Deleted(Decoded::Object(_)))));
        let line = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}});
        assert!(
            matches!(event::<Pod>(&line.to_string()), Ok(WatchEvent::Error(status)) if status.code == 410)
        );
    }
}
