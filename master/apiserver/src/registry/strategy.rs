//! The interface between the generic registry and the rules of a kind. `create.rs`, `update.rs` and
//! `delete.rs` call its methods in the order of stock Kubernetes' generic registry: default, prepare,
//! validate, allocate. `registry/kinds/*.rs` implement it, one file per kind with rules of its own; every
//! default method has the generic behaviour.

use std::collections::BTreeMap;

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::Value;
use storage::{Mutation, Precondition, Store};

use crate::settings::ClusterSettings;

/// Rule for the names of a kind's objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters: most kinds.
    Dns1123Subdomain,
    /// RFC 1123 label, at most 63 characters: Namespace.
    Dns1123Label,
    /// RFC 1035 label, at most 63 characters: Service.
    Dns1035Label,
    /// Any text that is valid as one path segment; used by RBAC kinds and core/v1 Events.
    PathSegment,
}

/// State that an allocation hook may read.
///
/// The store is the local replica as it is now. If a chosen value has been taken meanwhile, the transaction
/// fails its precondition, and generic code calls the hook again on newer state.
pub struct AllocationContext<'a> {
    /// The local replica.
    pub store: &'a Store,
    /// Cluster settings, such as Service CIDR and NodePort range.
    pub settings: &'a ClusterSettings,
    /// Source of randomness for choosing among free values; hooks must not use the thread's generator.
    pub random: &'a dyn proto_env::Random,
}

/// The change for which values are allocated.
pub enum ObjectChange<'a> {
    /// The object is about to be created; the hook writes what it chose into `new`.
    Create {
        /// The object, after defaults and `prepare_for_create`.
        new: &'a mut Value,
    },
    /// The object is about to be replaced; the hook writes what it chose into `new`.
    Update {
        /// The object that is going to be written.
        new: &'a mut Value,
        /// The stored object.
        old: &'a Value,
    },
    /// The object is about to be removed from the store; the hook releases the values the object holds.
    Delete {
        /// The stored object.
        old: &'a Value,
    },
}

/// Additions to the transaction that writes an object.
#[derive(Debug, Default)]
pub struct Allocations {
    /// Conditions that must hold, in addition to the object's own preconditions.
    pub preconditions: Vec<Precondition>,
    /// Mutations applied together with the object's own mutation, which comes first.
    pub mutations: Vec<Mutation>,
}

/// The rules of one kind.
pub trait Strategy: Send + Sync + 'static {
    /// Sets defaults that need code; called after the schema table's defaults, on create and on update.
    fn default(&self, _obj: &mut Value) {}

    /// Drops the fields that a client may not set on create. Generic code has already removed `status` where
    /// the kind has a status subresource, and set `metadata.generation` to 1 where `has_generation` is true.
    fn prepare_for_create(&self, _obj: &mut Value) {}

    /// Restores the fields that a client may not change through the main resource. Generic code has already
    /// restored the old `status` where the kind has a status subresource; afterwards it increments
    /// `metadata.generation` where `has_generation` is true and anything outside `metadata` and `status`
    /// changed.
    fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {}

    /// Restores the fields that a client may not change through the status subresource. Generic code has
    /// already restored everything but `status` and `metadata`.
    fn prepare_for_status_update(&self, _new: &mut Value, _old: &Value) {}

    /// Validates on create; metadata is validated generically before.
    fn validate(&self, _obj: &Value, _errs: &mut ErrorList) {}

    /// Validates on update; a kind whose updates obey the rules of create calls `validate` itself.
    fn validate_update(&self, new: &Value, _old: &Value, errs: &mut ErrorList) {
        self.validate(new, errs);
    }

    /// Validates a status update.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _errs: &mut ErrorList) {}

    /// Returns the rule of `metadata.name`.
    fn name_rule(&self) -> NameRule {
        NameRule::Dns1123Subdomain
    }

    /// Returns whether a client may set `status` on create, as a kubelet does when it registers its Node.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// Returns whether objects carry `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }

    /// Returns the values that field selectors compare with, by label; includes every one of
    /// `supported_field_labels`.
    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        metadata_fields(obj)
    }

    /// Returns the field labels that a selector may name; any other gets 400.
    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "metadata.namespace"]
    }

    /// Returns warnings for the client (`Warning: 299 - "..."`); `old` is the stored object on update, `None`
    /// on create.
    fn warnings(&self, _obj: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Returns the grace period of a delete, in seconds; `None` or `Some(0)` deletes at once.
    fn graceful_delete_seconds(&self, _obj: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Returns whether PUT to a name that does not exist creates the object (201).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Returns whether an update without a resourceVersion may overwrite any stored state.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Chooses values in the transaction that writes the object, such as a Service's ClusterIP.
    ///
    /// # Errors
    ///
    /// The Status to answer with, such as 422 when a wanted address is taken.
    fn allocations(
        &self,
        _ctx: &AllocationContext<'_>,
        _change: ObjectChange<'_>,
    ) -> Result<Allocations, Status> {
        Ok(Allocations::default())
    }
}

/// Returns `metadata.name` and `metadata.namespace`, by which every kind can be selected.
pub fn metadata_fields(obj: &Value) -> BTreeMap<String, String> {
    let text = |key: &str| {
        obj.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    BTreeMap::from([
        ("metadata.name".to_owned(), text("name")),
        ("metadata.namespace".to_owned(), text("namespace")),
    ])
}

/// The strategy of a kind that has no rules of its own.
#[derive(Debug)]
pub struct Generic;

impl Strategy for Generic {}
