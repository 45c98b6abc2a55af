//! Compares decoding with the test data of the Go module k8s.io/api, which has every kind as JSON and as
//! protobuf. Runs only where the module is in Go's module cache (`go mod download k8s.io/api@v0.35.4`).

use std::path::PathBuf;

use serde_json::Value;

use super::{envelope, message};
use crate::json;
use crate::kinds::split_api_version;
use crate::schema::{self, Schema, decode};

/// Returns the directory of the test data; `None` if it does not exist.
fn directory() -> Option<PathBuf> {
    let out = std::process::Command::new("go").args(["env", "GOMODCACHE"]).output().ok()?;
    let cache = String::from_utf8(out.stdout).ok()?;
    let path = PathBuf::from(cache.trim()).join("k8s.io/api@v0.35.4/testdata/HEAD");
    path.is_dir().then_some(path)
}

/// Returns every kind of the table that is in the test data: schema, JSON and protobuf.
pub(super) fn samples() -> Vec<(String, Schema, Vec<u8>, Vec<u8>)> {
    let Some(directory) = directory() else { return Vec::new() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let body = std::fs::read(&path).expect("readable");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let (api_version, kind) =
            envelope(&body).map(|e| (e.api_version, e.kind)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (group, version) = split_api_version(&api_version);
        if let Some(schema) = Schema::of(group, version, &kind) {
            let json = std::fs::read(path.with_extension("json")).expect("readable");
            found.push((name, schema, json, body));
        }
    }
    found
}

/// Returns the typed value in its stored form.
pub(super) fn canonical(schema: Schema, node: &json::Node) -> Value {
    let mut value = decode(schema, node).expect("typed").value;
    schema::encode(schema, &mut value);
    if let Some(members) = value.as_object_mut() {
        members.remove("apiVersion");
        members.remove("kind");
    }
    value
}

#[test]
fn protobuf_and_json_of_every_kind_are_the_same_object() {
    let samples = samples();
    let mut wrong = Vec::new();
    for (name, schema, text, body) in &samples {
        let node = json::parse(text).expect("JSON");
        let raw = envelope(body).expect("wrapped").raw;
        let found = message(*schema, raw).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (left, right) = (canonical(*schema, &found), canonical(*schema, &node));
        if left != right {
            wrong.push(format!("{name}\n  protobuf {left}\n  json     {right}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), samples.len(), wrong.join("\n"));
    assert!(samples.is_empty() || samples.len() > 60, "{}", samples.len());
}

#[test]
fn cut_and_changed_messages_are_errors_and_never_panics() {
    for (_, schema, _, body) in samples() {
        for end in (0..body.len()).step_by(13) {
            if let Ok(found) = envelope(&body[..end]) {
                let _ = message(schema, found.raw);
            }
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..40 {
            let mut changed = body.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 8).unwrap_or(0) % changed.len();
                changed[at] = state.to_le_bytes()[0];
            }
            if let Ok(found) = envelope(&changed)
                && let Ok(node) = message(schema, found.raw)
            {
                let _ = decode(schema, &node);
            }
        }
    }
}
