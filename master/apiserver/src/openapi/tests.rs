//! The documents as kubectl reads them.

use std::collections::BTreeSet;

use super::*;

fn get(path: &str) -> Value {
    let response = serve(path, None, None).expect("an OpenAPI path");
    serde_json::from_slice(response.body()).expect("JSON")
}

/// Every `$ref` of a document.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(target) if key == "$ref" => {
                        found.insert(target);
                    }
                    other => references(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_index_names_every_group_version_with_a_hash() {
    let index = get("/openapi/v3");
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL");
    let response = serve(url, Some("application/json"), None).expect("a document");
    assert_eq!(response.headers()[CACHE_CONTROL], "public, immutable");
    let etag = response.headers()[ETAG].to_str().expect("text").to_owned();
    let again = serve(url, None, Some(&etag)).expect("a document");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
}

#[test]
fn a_patch_operation_has_field_validation_and_its_kind() {
    let document = get("/openapi/v3/apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> =
        patch["parameters"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"), "{names:?}");
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
}

#[test]
fn every_reference_resolves_and_every_operation_is_unique() {
    let mut ids = BTreeSet::new();
    for name in v3().keys() {
        let document = get(&format!("/openapi/v3/{name}"));
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in found {
            let schema = target.strip_prefix("#/components/schemas/").expect("a schema");
            assert!(document["components"]["schemas"][schema].is_object(), "{target} in {name}");
        }
        for (path, entry) in document["paths"].as_object().expect("an object") {
            for operation in entry.as_object().expect("an object").values() {
                if let Some(id) = operation["operationId"].as_str() {
                    assert!(ids.insert(format!("{name} {id}")), "{id} of {path}");
                }
            }
        }
    }
}

#[test]
fn schemas_have_descriptions_list_types_and_merge_keys() {
    let document = get("/openapi/v3/api/v1");
    let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    let containers = &spec["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert!(containers["description"].as_str().is_some_and(|d| d.starts_with("List of containers")));
    assert_eq!(spec["required"], json!(["containers"]));
    assert_eq!(spec["properties"]["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["x-kubernetes-group-version-kind"],
        json!([{"group": "", "version": "v1", "kind": "Pod"}])
    );
}

#[test]
fn version_two_is_there_as_json_alone() {
    let document = get("/openapi/v2");
    assert_eq!(document["swagger"], "2.0");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in found {
        let schema = target.strip_prefix("#/definitions/").expect("a definition");
        assert!(document["definitions"][schema].is_object(), "{target}");
    }
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    assert_eq!(serve("/openapi/v2", Some(accept), None).expect("a path").status(), 406);
}
