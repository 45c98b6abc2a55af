//! The strategies of Events in both API groups. Events arrive here in their stored form, core/v1; the groups
//! differ in their validation rules and in the names of fields in selectors.

use std::collections::BTreeMap;

use proto_api::field::{Error, ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::strategy::{NameRule, Strategy, metadata_fields};
use super::check::{IMMUTABLE, Report, qualified_name};
use super::json_fields::{self, JsonFields, same};

/// The strategy of Events in one group.
#[derive(Debug)]
pub struct EventStrategy {
    /// Whether the request came through `events.k8s.io`.
    pub new_group: bool,
}

const TEXT_MAX: usize = 128;
const NOTE_MAX: usize = 1024;

/// Fields that never change in the newer group, with their names in errors; in the order of checking.
const FIXED: [(&str, &str); 14] = [
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("reason", "reason"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

impl EventStrategy {
    /// Validates the rules that both groups share.
    fn common(&self, event: &Value, errs: &mut ErrorList) {
        let namespace = json_fields::namespace(event);
        let about = event.sub("involvedObject").text("namespace");
        let path = Path::new("involvedObject").child("namespace");
        let timed = event.has("eventTime");
        let matches = match (timed, about.is_empty()) {
            (false, true) => matches!(namespace, "" | "default"),
            (false, false) => namespace == about,
            (true, true) => matches!(namespace, "default" | "kube-system"),
            (true, false) => true,
        };
        if !matches {
            errs.invalid(&path, about, "does not match event.namespace");
        }
        if timed {
            self.reported(event, errs);
        }
        errs.each(&Path::new("namespace"), namespace, names::dns1123_subdomain(namespace));
    }

    fn reported(&self, event: &Value, errs: &mut ErrorList) {
        let controller = event.text("reportingComponent");
        let path = Path::new(if self.new_group { "reportingController" } else { "reportingComponent" });
        if controller.is_empty() {
            errs.required(&path, "");
        }
        qualified_name(controller, &path, errs);
        for key in ["reportingInstance", "action", "reason"] {
            let value = event.text(key);
            if value.is_empty() {
                errs.required(&Path::new(key), "");
            }
            longest(value, key, TEXT_MAX, errs);
        }
        longest(event.text("message"), "message", NOTE_MAX, errs);
    }
}

fn longest(value: &str, key: &str, max: usize, errs: &mut ErrorList) {
    if value.len() > max {
        errs.invalid(&Path::new(key), "", &format!("can have at most {max} characters"));
    }
}

/// Returns the error for an immutable field that changed. Structs are printed as upstream prints its internal
/// types: all fields, by their Go names, in the order of declaration.
fn changed(key: &str, value: &Value, path: &Path) -> Error {
    let fields: &[(&str, &str)] = match key {
        "involvedObject" | "related" if !value.is_null() => &[
            ("Kind", "kind"),
            ("Namespace", "namespace"),
            ("Name", "name"),
            ("UID", "uid"),
            ("APIVersion", "apiVersion"),
            ("ResourceVersion", "resourceVersion"),
            ("FieldPath", "fieldPath"),
        ],
        "source" => &[("Component", "component"), ("Host", "host")],
        "count" => return Error::invalid(path, value.as_i64().unwrap_or_default(), IMMUTABLE),
        "reason" | "message" | "type" | "action" | "reportingComponent" | "reportingInstance" => {
            return Error::invalid(path, value.as_str().unwrap_or_default(), IMMUTABLE);
        }
        _ => return Error::invalid(path, value.clone(), IMMUTABLE),
    };
    let fields: Vec<String> =
        fields.iter().map(|(name, key)| format!("\"{name}\":{}", Value::from(value.text(key)))).collect();
    let shown = format!("{{{}}}: {IMMUTABLE}", fields.join(","));
    Error { value: None, ..Error::invalid(path, "", shown) }
}

fn series(event: &Value, errs: &mut ErrorList) {
    let Some(series) = event.at("series") else { return };
    if series.int("count") < 2 {
        errs.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        errs.required(&Path::new("series.lastObservedTime"), "");
    }
}

/// Validates the rules that only the newer group has for a new Event.
fn modern(event: &Value, errs: &mut ErrorList) {
    series(event, errs);
    if !event.has("eventTime") {
        errs.required(&Path::new("eventTime"), "");
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errs.invalid(&Path::new("type"), "", &format!("has invalid value: {kind}"));
    }
    let source = event.sub("source");
    for (key, used) in [
        ("firstTimestamp", event.has("firstTimestamp")),
        ("lastTimestamp", event.has("lastTimestamp")),
        ("count", event.int("count") != 0),
        ("source", !source.text("component").is_empty() || !source.text("host").is_empty()),
    ] {
        if used {
            errs.invalid(&Path::new(key), "", "needs to be unset");
        }
    }
}

impl Strategy for EventStrategy {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        self.common(obj, errs);
        if self.new_group {
            modern(obj, errs);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        self.common(new, errs);
        if !self.new_group {
            return;
        }
        if !same(new.sub("series"), old.sub("series")) {
            series(new, errs);
        }
        for (key, shown) in FIXED {
            let (new, old) = (new.sub(key), old.sub(key));
            if !same(new, old) {
                errs.push(changed(key, new, &Path::new(shown)));
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        // core/v1 accepts any path segment as the name of an Event.
        if self.new_group { NameRule::Dns1123Subdomain } else { NameRule::PathSegment }
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let mut out = metadata_fields(obj);
        let object = if self.new_group { "regarding" } else { "involvedObject" };
        let about = obj.sub("involvedObject");
        for key in ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"] {
            out.insert(format!("{object}.{key}"), about.text(key).to_owned());
        }
        for key in ["reason", "type"] {
            out.insert(key.to_owned(), obj.text(key).to_owned());
        }
        let reporter = obj.text("reportingComponent");
        let label = if self.new_group { "reportingController" } else { "reportingComponent" };
        out.insert(label.to_owned(), reporter.to_owned());
        if !self.new_group {
            let component = obj.sub("source").text("component");
            let source = if component.is_empty() { reporter } else { component };
            out.insert("source".to_owned(), source.to_owned());
        }
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        if self.new_group {
            &[
                "reason",
                "regarding.kind",
                "regarding.namespace",
                "regarding.name",
                "regarding.uid",
                "regarding.apiVersion",
                "regarding.resourceVersion",
                "regarding.fieldPath",
                "reportingController",
                "type",
                "metadata.namespace",
                "metadata.name",
            ]
        } else {
            &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
                "reason",
                "reportingComponent",
                "source",
                "type",
                "metadata.namespace",
                "metadata.name",
            ]
        }
    }
}
