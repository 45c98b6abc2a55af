//! Tests that read the OpenAPI documents as kubectl does.

use std::collections::BTreeSet;

use super::*;

fn get(path: &str) -> Value {
    let response = serve(path, None, None).expect("an OpenAPI path");
    serde_json::from_slice(response.body()).expect("JSON")
}

/// Collects every `$ref` of a document.
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
fn version_two_is_whole_as_json() {
    let document = get("/openapi/v2");
    assert_eq!(document["swagger"], "2.0");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in found {
        let schema = target.strip_prefix("#/definitions/").expect("a definition");
        assert!(document["definitions"][schema].is_object(), "{target}");
    }
}

/// Returns the values of the fields with number `number` in a protobuf message whose fields are all
/// length-delimited.
fn fields(message: &[u8], number: u64) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let key = prost::encoding::decode_varint(&mut rest).expect("a key");
        let size = prost::encoding::decode_varint(&mut rest).expect("a size or a flag");
        if key & 7 == 2 {
            let (field, more) = rest.split_at(usize::try_from(size).expect("fits"));
            rest = more;
            if key >> 3 == number {
                found.push(field);
            }
        }
    }
    found
}

/// Returns the value of the `Named...` message with a given name among the fields with a number.
fn named<'a>(message: &'a [u8], number: u64, name: &str) -> &'a [u8] {
    let entry = fields(message, number).into_iter().find(|entry| fields(entry, 1) == [name.as_bytes()]);
    fields(entry.unwrap_or_else(|| panic!("{name}")), 2)[0]
}

/// Returns the nested message at a path of field numbers.
fn at<'a>(message: &'a [u8], way: &[u64]) -> &'a [u8] {
    way.iter().fold(message, |message, number| fields(message, *number)[0])
}

#[test]
fn version_two_is_there_as_protobuf_of_gnostic() {
    let response = serve("/openapi/v2", Some(&format!("{PROTOBUF_V2_ASKED},*/*")), None).expect("a path");
    assert_eq!(response.headers()[CONTENT_TYPE], PROTOBUF_V2);
    let etag = response.headers()[ETAG].to_str().expect("text").to_owned();
    let document = response.body().as_ref();
    assert_eq!(at(document, &[1]), b"2.0");

    let spec = named(at(document, &[9]), 1, "io.k8s.api.core.v1.PodSpec");
    let containers = named(at(spec, &[25]), 1, "containers");
    assert_eq!(at(containers, &[22, 1]), b"array");
    assert_eq!(at(containers, &[23, 1, 1]), b"#/definitions/io.k8s.api.core.v1.Container");
    assert_eq!(at(named(containers, 31, "x-kubernetes-patch-merge-key"), &[2]), b"\"name\"");
    let labels = named(at(document, &[9]), 1, "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    assert_eq!(at(named(at(labels, &[25]), 1, "labels"), &[21, 1, 22, 1]), b"string");

    // kubectl decides whether the server validates fields by a query parameter of a kind's patch operation.
    let path = named(at(document, &[8]), 2, "/api/v1/namespaces/{namespace}/pods/{name}");
    let patch = at(path, &[8]);
    let names: Vec<&[u8]> = fields(patch, 8)
        .into_iter()
        .filter_map(|item| fields(fields(item, 1)[0], 2).into_iter().next())
        .filter_map(|parameter| fields(parameter, 3).into_iter().next())
        .map(|query| at(query, &[4]))
        .collect();
    assert!(names.contains(&b"fieldValidation".as_slice()), "{names:?}");
    let kind: Value = serde_json::from_slice(at(named(patch, 13, "x-kubernetes-group-version-kind"), &[2]))
        .expect("JSON is YAML");
    assert_eq!(kind, json!({"group": "", "version": "v1", "kind": "Pod"}));

    let again = serve("/openapi/v2", Some(PROTOBUF_V2), Some(&etag)).expect("a path");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let old = serve("/openapi/v2", Some(PROTOBUF_V2), None).expect("a path");
    assert_eq!(old.headers()[CONTENT_TYPE], PROTOBUF_V2);
    assert_eq!(old.body(), response.body());
    assert_eq!(serve("/openapi/v2", Some("text/plain"), None).expect("a path").status(), 406);
    assert_eq!(serve("/openapi/v3", Some(PROTOBUF_V2), None).expect("a path").status(), 406);
}
