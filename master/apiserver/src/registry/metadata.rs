//! Object metadata: fields that the server sets, and the validation of Kubernetes' `ValidateObjectMeta` and
//! `ValidateObjectMetaUpdate`. `create.rs` and `update.rs` call it for every kind.

use std::collections::BTreeSet;

use proto_api::field::{Error, ErrorList, Path};
use proto_api::kinds::Kind;
use proto_api::names;
use serde_json::{Map, Value};

use super::strategy::NameRule;

/// Maximum total of annotation keys and values, in bytes.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// Maximum length of the base of a generated name: names have at most 63 characters, 5 of them random.
const GENERATED_BASE_MAX: usize = 58;
/// Number of random letters appended to `generateName`.
pub const GENERATED_SUFFIX: usize = 5;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// Returns the metadata of an object, created where it is missing.
pub fn of(obj: &mut Value) -> &mut Map<String, Value> {
    if !obj.get("metadata").is_some_and(Value::is_object) {
        obj["metadata"] = Value::Object(Map::new());
    }
    match obj.get_mut("metadata") {
        Some(Value::Object(map)) => map,
        _ => unreachable!("metadata was made an object above"),
    }
}

/// Returns a text field of the metadata; empty where absent.
pub fn text<'a>(obj: &'a Value, key: &str) -> &'a str {
    obj.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Returns `metadata.finalizers`.
pub fn finalizers(obj: &Value) -> Vec<&str> {
    let list = obj.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Returns whether `metadata.deletionTimestamp` is set.
pub fn is_deleting(obj: &Value) -> bool {
    !text(obj, "deletionTimestamp").is_empty()
}

/// Returns `metadata.generation`; 0 where absent.
pub fn generation(obj: &Value) -> i64 {
    obj.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
}

/// Returns a random name for the `generateName` given as `base`.
pub fn generated_name(base: &str, random: &dyn proto_env::Random) -> String {
    let cut = base.char_indices().nth(GENERATED_BASE_MAX).map_or(base.len(), |(i, _)| i);
    format!("{}{}", &base[..cut], random.suffix(GENERATED_SUFFIX))
}

/// Checks of metadata that a kind's own update validation repeats after the generic pass. Stock kinds differ
/// in these, and each repeated check reports its errors again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum UpdatePasses {
    None,
    /// Kubernetes' `ValidateObjectMetaUpdate`; if true, the finalizer names are checked as core validation does.
    Update(bool),
    /// `ValidateObjectMetaUpdate`, finalizer names and `ValidateObjectMeta`.
    UpdateAndCreate,
}

fn update_passes(kind: &Kind) -> UpdatePasses {
    match (kind.gvk.group, kind.resource) {
        ("", "events") | ("policy", "poddisruptionbudgets") => UpdatePasses::None,
        ("coordination.k8s.io", "leases") | ("apiextensions.k8s.io" | "admissionregistration.k8s.io", _) => {
            UpdatePasses::Update(false)
        }
        ("apps", "controllerrevisions") => UpdatePasses::UpdateAndCreate,
        ("apps" | "autoscaling" | "discovery.k8s.io" | "events.k8s.io" | "scheduling.k8s.io", _)
        | ("", "services" | "podtemplates" | "limitranges" | "resourcequotas" | "replicationcontrollers")
        | ("batch", "cronjobs") => UpdatePasses::Update(true),
        _ => UpdatePasses::UpdateAndCreate,
    }
}

/// Returns whether a kind's own validation includes metadata, so that all errors are reported together.
pub fn is_part_of_validation(kind: &Kind) -> bool {
    update_passes(kind) != UpdatePasses::None && kind.resource != "events"
}

/// Validates the metadata of an object that is about to be created.
pub fn validate_create(obj: &Value, kind: &Kind, rule: NameRule, errs: &mut ErrorList) {
    validate_object_meta(obj, kind.namespaced, rule, errs);
    validate_finalizer_names(obj, errs);
}

/// Validates the metadata of an object that is about to replace `old`.
pub fn validate_update(new: &Value, old: &Value, kind: &Kind, rule: NameRule, errs: &mut ErrorList) {
    validate_object_meta(new, kind.namespaced, NameRule::PathSegment, errs);
    validate_object_meta_update(new, old, errs);
    match update_passes(kind) {
        UpdatePasses::None => {}
        UpdatePasses::Update(names) => {
            validate_object_meta_update(new, old, errs);
            if names {
                validate_finalizer_names(new, errs);
            }
        }
        UpdatePasses::UpdateAndCreate => {
            validate_object_meta_update(new, old, errs);
            validate_finalizer_names(new, errs);
            validate_object_meta(new, kind.namespaced, rule, errs);
            validate_finalizer_names(new, errs);
        }
    }
}

fn rule_of(rule: NameRule) -> names::Rule {
    match rule {
        NameRule::Dns1123Subdomain => names::dns1123_subdomain,
        NameRule::Dns1123Label => names::dns1123_label,
        NameRule::Dns1035Label => names::dns1035_label,
        NameRule::PathSegment => names::path_segment,
    }
}

fn validate_object_meta(obj: &Value, namespaced: bool, rule: NameRule, errs: &mut ErrorList) {
    let at = Path::new("metadata");
    let rule = rule_of(rule);
    let (name, generate) = (text(obj, "name"), text(obj, "generateName"));
    if !generate.is_empty() {
        errs.push_invalid_each(&at.child("generateName"), generate, names::as_prefix(rule, generate));
    }
    if name.is_empty() {
        errs.push(Error::required(&at.child("name"), "name or generateName is required"));
    } else {
        errs.push_invalid_each(&at.child("name"), name, rule(name));
    }
    let namespace = text(obj, "namespace");
    if namespaced {
        if namespace.is_empty() {
            errs.push(Error::required(&at.child("namespace"), ""));
        } else {
            errs.push_invalid_each(&at.child("namespace"), namespace, names::dns1123_label(namespace));
        }
    } else if !namespace.is_empty() {
        errs.push(Error::forbidden(&at.child("namespace"), "not allowed on this type"));
    }
    if generation(obj) < 0 {
        let path = at.child("generation");
        errs.push(Error::invalid(&path, generation(obj), "must be greater than or equal to 0"));
    }
    validate_maps(obj, errs);
    validate_finalizers(obj, errs);
}

fn validate_maps(obj: &Value, errs: &mut ErrorList) {
    let at = Path::new("metadata");
    validate_labels(obj.pointer("/metadata/labels"), &at.child("labels"), errs);
    validate_annotations(obj.pointer("/metadata/annotations"), &at.child("annotations"), errs);
    validate_owner_references(obj, &at.child("ownerReferences"), errs);
}

/// Validates a map of labels at the field `at`.
pub fn validate_labels(labels: Option<&Value>, at: &Path, errs: &mut ErrorList) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errs.push_invalid_each(at, key, names::qualified_name(key));
        if let Some(value) = value.as_str() {
            errs.push_invalid_each(at, value, names::label_value(value));
        }
    }
}

/// Validates a map of annotations at the field `at`.
pub fn validate_annotations(annotations: Option<&Value>, at: &Path, errs: &mut ErrorList) {
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Keys may hold upper-case letters: the annotation rule is older than the one of prefixes.
        errs.push_invalid_each(at, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errs.push(Error::too_long(at, ANNOTATIONS_MAX_BYTES));
    }
}

fn validate_owner_references(obj: &Value, at: &Path, errs: &mut ErrorList) {
    let Some(owners) = obj.pointer("/metadata/ownerReferences").and_then(Value::as_array) else { return };
    let (mut controller, mut reported) = ("", false);
    for (i, owner) in owners.iter().enumerate() {
        let path = at.index(i);
        let field = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default();
        if field("apiVersion").rsplit('/').next().unwrap_or_default().is_empty() {
            errs.push(Error::invalid(
                &path.child("apiVersion"),
                field("apiVersion"),
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if field(key).is_empty() {
                errs.push(Error::invalid(&path.child(key), field(key), "must not be empty"));
            }
        }
        if field("apiVersion") == "v1" && field("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errs.push(Error::invalid(&path, owner.clone(), why));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if controller.is_empty() {
                controller = field("name");
            } else if !reported {
                // Reported once, because the error includes the whole list.
                reported = true;
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {}",
                    field("name")
                );
                errs.push(Error::invalid(at, Value::Array(owners.clone()), why));
            }
        }
    }
}

fn validate_finalizers(obj: &Value, errs: &mut ErrorList) {
    let at = Path::new("metadata").child("finalizers");
    let list = finalizers(obj);
    for name in &list {
        errs.push_invalid_each(&at, name, names::qualified_name(name));
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errs.push(Error::invalid(&at, Value::from(list), why));
    }
}

/// Checks core validation's additional rule: a finalizer is a standard one or has a domain.
fn validate_finalizer_names(obj: &Value, errs: &mut ErrorList) {
    let at = Path::new("metadata").child("finalizers");
    for (i, name) in finalizers(obj).into_iter().enumerate() {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errs.push(Error::invalid(&at.index(i), name, why));
        }
    }
}

fn validate_object_meta_update(new: &Value, old: &Value, errs: &mut ErrorList) {
    let at = Path::new("metadata");
    if is_deleting(old) {
        let before: BTreeSet<&str> = finalizers(old).into_iter().collect();
        let added: Vec<String> =
            finalizers(new).into_iter().filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errs.push(Error::forbidden(&at.child("finalizers"), why));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        errs.push(Error::invalid(&at.child("resourceVersion"), "", "must be specified for an update"));
    }
    if generation(new) < generation(old) {
        errs.push(Error::invalid(&at.child("generation"), generation(new), "must not be decremented"));
    }
    for key in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let value =
            |obj: &Value| obj.get("metadata").and_then(|m| m.get(key)).cloned().unwrap_or(Value::Null);
        if value(new) != value(old) {
            errs.push(Error::invalid(&at.child(key), value(new), "field is immutable"));
        }
    }
    validate_maps(new, errs);
}
