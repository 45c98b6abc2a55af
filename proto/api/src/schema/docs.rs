//! Descriptions of types and fields, unpacked when OpenAPI first asks for them.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.gz"));

type Docs = HashMap<String, HashMap<String, String>>;

fn unpack() -> Docs {
    let mut text = String::new();
    if let Err(error) = flate2::read::GzDecoder::new(PACKED).read_to_string(&mut text) {
        // The descriptions are compiled in and a test reads them; without them OpenAPI still works.
        tracing::error!(%error, "descriptions of the schema table");
    }
    let mut docs = Docs::new();
    let mut current = String::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((left, right)) = line.split_once('\t') else { continue };
        let value = right.replace("\\n", "\n").replace("\\\\", "\\");
        if let Some(name) = left.strip_prefix("= ") {
            current = name.to_owned();
            docs.entry(current.clone()).or_default().insert(String::new(), value);
        } else {
            docs.entry(current.clone()).or_default().insert(left.to_owned(), value);
        }
    }
    docs
}

/// Returns the description of a type's field, or of the type itself if the field name is empty; `None` if
/// there is none.
pub fn description(of: &str, field: &str) -> Option<&'static str> {
    static DOCS: LazyLock<Docs> = LazyLock::new(unpack);
    DOCS.get(of).and_then(|fields| fields.get(field)).map(String::as_str).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::description;

    #[test]
    fn fields_and_types_have_descriptions() {
        let spec = description("apps/v1.DeploymentSpec", "replicas").expect("a description");
        assert!(spec.starts_with("Number of desired pods."), "{spec}");
        assert!(description("core/v1.Pod", "").expect("a description").starts_with("Pod is"));
    }
}
