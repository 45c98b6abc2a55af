//! Tests with small handmade messages: the wrapper, the scalar-like types, merging, and bytes that are not
//! a message.

use serde_json::{Value, json};

use super::{Envelope, Error, envelope, message};
use crate::schema::{Schema, decode};

/// Encodes a length-delimited field of fewer than 128 bytes.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out
}

fn typed(group: &str, kind: &str, raw: &[u8]) -> Value {
    let schema = Schema::of(group, "v1", kind).expect("in the table");
    decode(schema, &message(schema, raw).expect("a message")).expect("typed").value
}

#[test]
fn the_wrapper_names_apiversion_and_kind() {
    let meta = [field(1, b"v1"), field(2, b"Pod")].concat();
    let body =
        [b"k8s\0".to_vec(), field(1, &meta), field(2, b"\x0a\x00"), field(3, b""), field(4, b"")].concat();
    let expected = Envelope { api_version: "v1".into(), kind: "Pod".into(), raw: b"\x0a\x00" };
    assert_eq!(envelope(&body), Ok(expected));
}

#[test]
fn bodies_without_magic_or_message_get_the_stock_text() {
    assert_eq!(envelope(b"").expect_err("nothing").to_string(), "empty data");
    assert_eq!(envelope(b"k8s\0").expect_err("nothing").to_string(), "empty body");
    assert_eq!(
        envelope(b"{}").expect_err("JSON").to_string(),
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    );
}

#[test]
fn scalars_times_and_maps_are_read() {
    // creationTimestamp (8) 2008-01-01T01:01:01Z, labels (11), deletionGracePeriodSeconds (10) 0.
    let label = [field(1, b"a"), field(2, b"b")].concat();
    let meta = [
        field(1, b"x"),
        field(8, b"\x08\xcd\xa1\xe6\xbb\x04\x10\x00"),
        vec![0x50, 0x00],
        field(11, &label),
        field(11, &field(1, b"empty")),
    ]
    .concat();
    let data = [field(1, b"k"), field(2, &[0, 255])].concat();
    let raw = [field(1, &meta), field(3, &data)].concat();
    assert_eq!(
        typed("", "ConfigMap", &raw),
        json!({"binaryData": {"k": "AP8="}, "metadata": {"name": "x", "deletionGracePeriodSeconds": 0,
            "creationTimestamp": "2008-01-01T01:01:01Z", "labels": {"a": "b", "empty": ""}}})
    );
}

#[test]
fn named_lists_are_messages_and_int_or_strings_know_their_type() {
    // spec (2) of a SubjectAccessReview: extra (5) {"k": ["a", "b"]}.
    let values = [field(1, b"a"), field(1, b"b")].concat();
    let extra = field(5, &[field(1, b"k"), field(2, &values)].concat());
    assert_eq!(
        typed("authorization.k8s.io", "SubjectAccessReview", &field(2, &extra)),
        json!({"spec": {"extra": {"k": ["a", "b"]}}})
    );
    // spec (2) of a PodDisruptionBudget: minAvailable (1), maxUnavailable (3).
    let int = field(1, &[0x08, 0, 0x10, 3, 0x1a, 0]);
    let text = field(3, &[vec![0x08, 1, 0x10, 0], field(3, b"50%")].concat());
    assert_eq!(
        typed("policy", "PodDisruptionBudget", &field(2, &[int, text].concat())),
        json!({"spec": {"minAvailable": 3, "maxUnavailable": "50%"}})
    );
}

#[test]
fn embedded_structs_are_flattened_and_repeated_messages_are_merged() {
    // spec (2) of a Pod: volumes (1) with name (1) and the embedded source (2): emptyDir (2).
    let volume = field(1, &[field(1, b"v"), field(2, &field(2, &[]))].concat());
    let again = [field(2, &volume), field(2, &field(10, b"node"))].concat();
    assert_eq!(
        typed("", "Pod", &again),
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "nodeName": "node"}})
    );
}

#[test]
fn unknown_fields_and_groups_are_skipped() {
    let raw =
        [vec![0xfb, 0x01, 0x08, 0x01, 0xfc, 0x01], field(15, b"future"), field(1, &field(1, b"x"))].concat();
    assert_eq!(typed("", "ConfigMap", &raw), json!({"metadata": {"name": "x"}}));
}

#[test]
fn malformed_messages_are_refused() {
    let schema = Schema::of("", "v1", "ConfigMap").expect("in the table");
    let error = |raw: &[u8]| message(schema, raw).expect_err("malformed");
    assert_eq!(error(&[0x0a, 5, 1]), Error::Truncated);
    assert_eq!(error(&[0x0a]), Error::Truncated);
    assert_eq!(error(&[0xff; 12]), Error::Overflow);
    assert_eq!(error(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Error::Truncated);
    assert_eq!(error(&[0x00, 1]).to_string(), "proto: illegal tag 0 (wire type 0)");
    assert_eq!(error(&[0x08, 1]).to_string(), "proto: wrong wireType = 0 for field Metadata");
    assert_eq!(error(&[0x0e]).to_string(), "proto: illegal wireType 6");
    let groups = vec![0x7b; 5000];
    assert_eq!(error(&groups).to_string(), "proto: illegal wireType 3");
    let year = field(1, &field(8, &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]));
    assert!(error(&year).to_string().contains("year outside of range"));
}
