//! Paths and operations of a group and version: the verbs of each resource, with their parameters.

use proto_api::kinds::{self, GroupVersionKind, Kind, Subresource};
use proto_api::schema;
use serde_json::{Map, Value, json};

use super::schemas::{Collector, Dialect};

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const ANSWERS: &[&str] = &["application/json", "application/yaml"];

/// Query parameters of each action: the options type that documents them, and their names.
const LIST: (&str, &[&str]) = (
    "meta/v1.ListOptions",
    &[
        "allowWatchBookmarks",
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "timeoutSeconds",
        "watch",
    ],
);
const CREATE: (&str, &[&str]) = ("meta/v1.CreateOptions", &["dryRun", "fieldManager", "fieldValidation"]);
const UPDATE: (&str, &[&str]) = ("meta/v1.UpdateOptions", &["dryRun", "fieldManager", "fieldValidation"]);
const PATCH: (&str, &[&str]) =
    ("meta/v1.PatchOptions", &["dryRun", "fieldManager", "fieldValidation", "force"]);
const DELETE: (&str, &[&str]) =
    ("meta/v1.DeleteOptions", &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"]);
const NONE: (&str, &[&str]) = ("", &[]);

/// Resource or subresource that an operation acts on.
struct Target<'a> {
    kind: &'a Kind,
    body: GroupVersionKind,
    sub: Option<&'a Subresource>,
}

/// Returns the `paths` object of a group and version; collects the schemas that the paths refer to in
/// `schemas`.
pub(super) fn of(group: &str, version: &str, schemas: &mut Collector) -> Map<String, Value> {
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let mut paths = Map::new();
    for kind in kinds::in_group_version(group, version) {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", kind.resource);
        let target = Target { kind, body: kind.gvk, sub: None };
        let verbs = [("list", "get"), ("create", "post"), ("deletecollection", "delete")];
        insert(&mut paths, &collection, &target, &verbs, kind.verbs, schemas);
        if kind.namespaced && kind.has_verb("list") {
            let all = Target { kind, body: kind.gvk, sub: None };
            insert(
                &mut paths,
                &format!("{root}/{}", kind.resource),
                &all,
                &[("list", "get")],
                kind.verbs,
                schemas,
            );
        }
        let item = format!("{collection}/{{name}}");
        let verbs = [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")];
        insert(&mut paths, &item, &target, &verbs, kind.verbs, schemas);
        for sub in kind.subresources {
            let target = Target { kind, body: sub.body, sub: Some(sub) };
            let verbs = [
                ("get", "get"),
                ("create", "post"),
                ("update", "put"),
                ("patch", "patch"),
                ("delete", "delete"),
            ];
            insert(&mut paths, &format!("{item}/{}", sub.name), &target, &verbs, sub.verbs, schemas);
        }
    }
    paths
}

fn insert(
    paths: &mut Map<String, Value>,
    path: &str,
    target: &Target<'_>,
    verbs: &[(&str, &str)],
    has: &[&str],
    schemas: &mut Collector,
) {
    let mut entry = Map::new();
    for (verb, method) in verbs.iter().filter(|(verb, _)| has.contains(verb)) {
        entry.insert((*method).to_owned(), operation(verb, path, target, schemas));
    }
    if entry.is_empty() {
        return;
    }
    let dialect = schemas.dialect;
    let mut parameters = Vec::new();
    for name in ["namespace", "name"] {
        if path.contains(&format!("{{{name}}}")) {
            let text = match name {
                "name" => format!("name of the {}", target.kind.gvk.kind),
                _ => "object name and auth scope, such as for teams and projects".to_owned(),
            };
            parameters.push(parameter(dialect, name, "path", "string", &text));
        }
    }
    parameters.push(parameter(
        dialect,
        "pretty",
        "query",
        "string",
        "If 'true', then the output is pretty printed.",
    ));
    entry.insert("parameters".to_owned(), Value::Array(parameters));
    paths.insert(path.to_owned(), Value::Object(entry));
}

fn parameter(dialect: Dialect, name: &str, place: &str, of: &str, text: &str) -> Value {
    let mut out = json!({"name": name, "in": place, "description": text});
    if place == "path" {
        out["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => {
            out["type"] = json!(of);
            out["uniqueItems"] = json!(true);
        }
        Dialect::V3 => out["schema"] = json!({"type": of, "uniqueItems": true}),
    }
    out
}

fn query(dialect: Dialect, (of, names): (&str, &[&str])) -> Vec<Value> {
    let type_of = |name: &str| match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "allowWatchBookmarks" | "sendInitialEvents" | "watch" | "force" | "orphanDependents" => "boolean",
        _ => "string",
    };
    names
        .iter()
        .map(|name| {
            let text = schema::description(of, name).unwrap_or_default();
            parameter(dialect, name, "query", type_of(name), text)
        })
        .collect()
}

/// Returns whether the operation is on a streaming subresource, which takes no typed body.
fn is_raw(target: &Target<'_>) -> bool {
    target.sub.is_some_and(|s| matches!(s.name, "attach" | "exec" | "log" | "portforward" | "proxy"))
}

fn operation(verb: &str, path: &str, target: &Target<'_>, schemas: &mut Collector) -> Value {
    let dialect = schemas.dialect;
    let (action, parameters) = match verb {
        "list" => ("list", LIST),
        "create" => ("post", CREATE),
        "deletecollection" => ("deletecollection", LIST),
        "get" => ("get", NONE),
        "update" => ("put", UPDATE),
        "patch" => ("patch", PATCH),
        _ => ("delete", DELETE),
    };
    let raw = is_raw(target);
    let gvk = target.body;
    let mut parameters = if raw { Vec::new() } else { query(dialect, parameters) };
    let body = match verb {
        _ if raw => None,
        "create" | "update" => Some(schemas.kind(gvk.group, gvk.version, gvk.kind)),
        "patch" => Some(schemas.patch()),
        "delete" | "deletecollection" => Some(schemas.kind("meta.k8s.io", "v1", "DeleteOptions")),
        _ => None,
    };
    let answer = match verb {
        _ if raw => json!({"type": "string"}),
        "list" => schemas.kind(gvk.group, gvk.version, &format!("{}List", gvk.kind)),
        "delete" | "deletecollection" => schemas.kind("meta.k8s.io", "v1", "Status"),
        _ => schemas.kind(gvk.group, gvk.version, gvk.kind),
    };
    let mut out = json!({"operationId": operation_id(verb, path, target), "tags": [tag(target.kind)],
        "description": describe(verb, target), "responses": responses(verb, &answer, dialect)});
    match (body, dialect) {
        (Some(schema), Dialect::V2) => {
            let required = !verb.starts_with("delete");
            let consumes = if verb == "patch" { PATCHES } else { ANSWERS };
            let mut body = json!({"name": "body", "in": "body", "schema": schema});
            if required {
                body["required"] = json!(true);
            }
            parameters.push(body);
            out["consumes"] = json!(consumes);
        }
        (Some(schema), Dialect::V3) => {
            let types = if verb == "patch" { PATCHES } else { &["*/*"] };
            let content: Map<String, Value> =
                types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect();
            let mut body = json!({"content": content});
            if !verb.starts_with("delete") {
                body["required"] = json!(true);
            }
            out["requestBody"] = body;
        }
        (None, _) => {}
    }
    if dialect == Dialect::V2 {
        out["produces"] = json!(ANSWERS);
    }
    if !parameters.is_empty() {
        out["parameters"] = Value::Array(parameters);
    }
    out["x-kubernetes-action"] = json!(if raw { "connect" } else { action });
    out["x-kubernetes-group-version-kind"] =
        json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind});
    out
}

fn responses(verb: &str, answer: &Value, dialect: Dialect) -> Value {
    let one = |text: &str| match dialect {
        Dialect::V2 => json!({"description": text, "schema": answer}),
        Dialect::V3 => {
            let content: Map<String, Value> =
                ANSWERS.iter().map(|t| ((*t).to_owned(), json!({"schema": answer}))).collect();
            json!({"description": text, "content": content})
        }
    };
    let mut out = json!({"200": one("OK"), "401": {"description": "Unauthorized"}});
    if matches!(verb, "create" | "update" | "patch") {
        out["201"] = one("Created");
    }
    if matches!(verb, "create" | "delete") {
        out["202"] = one("Accepted");
    }
    out
}

fn describe(verb: &str, target: &Target<'_>) -> String {
    let kind = target.kind.gvk.kind;
    let what = match target.sub {
        Some(sub) => format!("{} of the specified {kind}", sub.name),
        None => format!("the specified {kind}"),
    };
    match verb {
        "list" => format!("list or watch objects of kind {kind}"),
        "create" if target.sub.is_none() => format!("create a {kind}"),
        "create" => format!("create {what}"),
        "deletecollection" => format!("delete collection of {kind}"),
        "get" => format!("read {what}"),
        "update" => format!("replace {what}"),
        "patch" => format!("partially update {what}"),
        _ => format!("delete {what}"),
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().collect::<String>() + chars.as_str())
}

fn group_word(kind: &Kind) -> &str {
    if kind.gvk.group.is_empty() { "core" } else { kind.gvk.group.split('.').next().unwrap_or_default() }
}

fn tag(kind: &Kind) -> String {
    format!("{}_{}", group_word(kind), kind.gvk.version)
}

/// Returns an operation's unique id, such as `createAppsV1NamespacedDeployment`; generated clients name
/// functions after it.
fn operation_id(verb: &str, path: &str, target: &Target<'_>) -> String {
    let kind = target.kind;
    let action = match verb {
        "get" if is_raw(target) => "connectGet",
        "create" if is_raw(target) => "connectPost",
        "update" if is_raw(target) => "connectPut",
        "patch" if is_raw(target) => "connectPatch",
        "delete" if is_raw(target) => "connectDelete",
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "delete",
        other => other,
    };
    let collection = if verb == "deletecollection" { "Collection" } else { "" };
    let namespaced = if path.contains("{namespace}") { "Namespaced" } else { "" };
    let all = if kind.namespaced && namespaced.is_empty() { "ForAllNamespaces" } else { "" };
    let sub = target.sub.map(|s| capital(s.name)).unwrap_or_default();
    let (group, version) = (capital(group_word(kind)), capital(kind.gvk.version));
    format!("{action}{group}{version}{collection}{namespaced}{}{sub}{all}", kind.gvk.kind)
}
