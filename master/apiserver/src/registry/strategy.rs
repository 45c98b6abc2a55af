//! The rules of a kind, as the generic registry needs them. `create.rs`, `update.rs` and `delete.rs` beside it call them
//! in the order of stock Kubernetes' generic registry: default, prepare, validate, allocate. `registry/kinds/*.rs`
//! implement them, one file a kind with rules of its own; every default method here does the generic thing.

use std::collections::BTreeMap;

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::Value;
use storage::{Mutation, Precondition, Store};

use crate::settings::ClusterSettings;

/// Which names an object of a kind may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters: most kinds.
    Dns1123Subdomain,
    /// RFC 1123 label, at most 63 characters: Namespace and, since 1.34's relaxed names, Service.
    Dns1123Label,
    /// RFC 1035 label, at most 63 characters: Service.
    Dns1035Label,
    /// Anything that fits one path segment: RBAC kinds.
    PathSegment,
}

/// What an allocation hook may look at.
///
/// The store is the local replica as it is now. A choice that turns out to be taken makes the transaction
/// fail its precondition, and generic code calls the hook again on newer state.
pub struct AllocationContext<'a> {
    /// The local replica.
    pub store: &'a Store,
    /// Service CIDR, NodePort range and the like.
    pub settings: &'a ClusterSettings,
    /// Which of the free values to begin with; draw from here, never from the thread's generator.
    pub random: &'a dyn proto_env::Random,
}

/// The change an allocation belongs to.
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
    /// The object is about to be removed from the store: release what it holds.
    Delete {
        /// The stored object.
        old: &'a Value,
    },
}

/// Extra parts of the transaction that writes an object.
#[derive(Debug, Default)]
pub struct Allocations {
    /// Must hold, beside the object's own preconditions.
    pub preconditions: Vec<Precondition>,
    /// Applied with the object's own mutation, which comes first.
    pub mutations: Vec<Mutation>,
}

/// The rules of one kind.
pub trait Strategy: Send + Sync + 'static {
    /// Defaults that need code; called after the schema table's defaults, on create and on update.
    fn default(&self, _obj: &mut Value) {}

    /// Drops what a client may not set on create. Generic code has removed `status` already where the kind has
    /// a status subresource, and set `metadata.generation` to 1 where `has_generation`.
    fn prepare_for_create(&self, _obj: &mut Value) {}

    /// Keeps what a client may not change through the main resource. Generic code has put the old `status`
    /// back where the kind has a status subresource; it bumps `metadata.generation` afterwards, where
    /// `has_generation` and anything outside `metadata` and `status` changed.
    fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {}

    /// Keeps what a client may not change through the status subresource. Generic code has put everything but
    /// `status` and `metadata` back already.
    fn prepare_for_status_update(&self, _new: &mut Value, _old: &Value) {}

    /// Validates on create; metadata is validated generically before.
    fn validate(&self, _obj: &Value, _errs: &mut ErrorList) {}

    /// Validates on update; a kind whose updates obey the rules of create calls `validate` itself.
    fn validate_update(&self, new: &Value, _old: &Value, errs: &mut ErrorList) {
        self.validate(new, errs);
    }

    /// Validates a status update.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _errs: &mut ErrorList) {}

    /// The rule of `metadata.name`.
    fn name_rule(&self) -> NameRule {
        NameRule::Dns1123Subdomain
    }

    /// Whether a client may set `status` on create, as a kubelet does when it registers its Node.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// Whether objects carry `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }

    /// The values field selectors compare with, by label. Must hold every one of `supported_field_labels`.
    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        metadata_fields(obj)
    }

    /// Field labels that a selector may name; any other gets 400.
    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "metadata.namespace"]
    }

    /// Warnings for the client (`Warning: 299 - "..."`); `old` is the stored object on update.
    fn warnings(&self, _obj: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// The grace period of a delete, in seconds; `None` or `Some(0)` deletes at once.
    fn graceful_delete_seconds(&self, _obj: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether PUT to a name that does not exist creates it (201).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without a resourceVersion wins over whatever is stored.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Values chosen in the transaction that writes the object, such as a Service's ClusterIP.
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

/// `metadata.name` and `metadata.namespace`, which every kind can be selected by.
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
