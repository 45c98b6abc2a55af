//! Tests of decoding; the messages are those of a stock API server.

use serde_json::{Value, json};

use super::*;

fn run(group: &str, kind: &str, text: &str) -> Result<Decoded, String> {
    let node = json::parse(text.as_bytes())?;
    decode(Schema::of(group, "v1", kind).expect("in the table"), &node)
}

fn error(group: &str, kind: &str, value: Value) -> String {
    run(group, kind, &value.to_string()).err().unwrap_or_default()
}

#[test]
fn type_errors_name_the_struct_the_path_and_the_type() {
    let cases = [
        (
            json!({"spec": {"replicas": "1"}}),
            "string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (json!({"metadata": []}), "array into Go struct field Deployment.metadata of type v1.ObjectMeta"),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            "number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            json!({"spec": {"template": {"spec": {"volumes": [1]}}}}),
            "number into Go struct field PodSpec.spec.template.spec.volumes of type v1.Volume",
        ),
        (
            json!({"spec": {"template": {"spec": {"volumes": [{"configMap": true}]}}}}),
            "bool into Go struct field Volume.spec.template.spec.volumes.VolumeSource.configMap of type v1.ConfigMapVolumeSource",
        ),
        (
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": true}}}}),
            "bool into Go struct field RollingUpdateDeployment.spec.strategy.rollingUpdate.maxSurge of type int32",
        ),
    ];
    for (object, message) in cases {
        assert_eq!(error("apps", "Deployment", object), format!("json: cannot unmarshal {message}"));
    }
    assert_eq!(
        error("", "Pod", json!({"spec": {"restartPolicy": 1}})),
        "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy"
    );
    assert_eq!(
        run("apps", "Deployment", "[]").err().unwrap_or_default(),
        "json: cannot unmarshal array into Go value of type v1.Deployment"
    );
}

#[test]
fn bytes_are_checked_and_the_offset_is_named() {
    let error = |b: Value| error("", "ConfigMap", json!({"binaryData": {"b": b}}));
    assert_eq!(error(json!("UPPER_case!")), "illegal base64 data at input byte 5");
    assert_eq!(error(json!("changed")), "illegal base64 data at input byte 4");
    assert_eq!(
        error(json!(1)),
        "json: cannot unmarshal number into Go struct field ConfigMap.binaryData of type []uint8"
    );
    assert_eq!(error(json!("AAE=")), "");
}

#[test]
fn unknown_and_duplicate_fields_are_collected_and_pruned() {
    let text = r#"{"spec": {"foo": 1, "replicas": 1, "replicas": 2, "template": {"spec": {"containers": [{"bar": {}}]}}}, "bogus": 1}"#;
    let decoded = run("apps", "Deployment", text).expect("decodes");
    assert_eq!(
        decoded.strict,
        [
            "unknown field \"spec.foo\"",
            "duplicate field \"spec.replicas\"",
            "unknown field \"spec.template.spec.containers[0].bar\"",
            "unknown field \"bogus\""
        ]
    );
    assert_eq!(decoded.value, json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{}]}}}}));
}

#[test]
fn zero_scalars_go_unless_a_pointer_tells_them_from_absent_ones() {
    let object = json!({"spec": {"replicas": 0, "minReadySeconds": 0, "paused": false, "template": {"metadata": {"labels": {}}}}});
    let decoded = run("apps", "Deployment", &object.to_string()).expect("decodes");
    assert_eq!(decoded.value, json!({"spec": {"replicas": 0, "template": {"metadata": {"labels": {}}}}}));
}

#[test]
fn quantities_and_times_become_canonical() {
    let object = json!({"metadata": {"creationTimestamp": "2026-01-01T01:00:00+01:00"},
        "spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}}}]}});
    let decoded = run("", "Pod", &object.to_string()).expect("decodes");
    assert_eq!(
        decoded.value,
        json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Mi"}}}]}})
    );
    assert!(
        error("", "Pod", json!({"spec": {"containers": [{"resources": {"limits": {"cpu": true}}}]}}))
            .starts_with("quantities must match the regular expression")
    );
}

#[test]
fn nulls_are_zero_values() {
    let object = json!({"metadata": {"labels": {"a": null}}, "spec": null, "data": null});
    let decoded = run("", "ConfigMap", &object.to_string()).expect("decodes");
    assert_eq!(decoded.value, json!({"metadata": {"labels": {"a": ""}}}));
    assert_eq!(run("", "ConfigMap", "null").expect("decodes").value, json!({}));
}

#[test]
fn a_number_that_no_float_holds_is_refused_and_does_not_become_null() {
    for of in [Type::Any, Type::Float(64)] {
        for text in ["1e999", "-1e999"] {
            let refused = super::decode_type(&of, &json::parse(text.as_bytes()).expect("parses"));
            let message = format!("json: cannot unmarshal number {text} into Go value of type float64");
            assert_eq!(refused.map(|d| d.value), Err(message), "{of:?}");
        }
        let kept = super::decode_type(&of, &json::parse(b"1e300").expect("parses")).expect("fits");
        assert_eq!(kept.value, json!(1e300), "{of:?}");
    }
    let inside = json::parse(br#"{"a": [1, {"b": 1e999}]}"#).expect("parses");
    assert!(super::decode_type(&Type::Any, &inside).is_err());
}
