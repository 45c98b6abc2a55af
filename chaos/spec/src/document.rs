//! Converts YAML text to a JSON value, strictly: a duplicate key, a tag or a number that JSON cannot hold is
//! an error. `experiment` calls it and decodes the value. JSON is the intermediate form because serde's YAML
//! writes an enum as a tag (`!cut`), while the file has `cut: {...}`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::Error;

/// Parses one YAML document.
///
/// # Errors
/// Fails for text that is no YAML, more than one document, a duplicate key, a tag, or an infinite or
/// undefined number.
pub(crate) fn read(text: &str) -> Result<Value, Error> {
    let yaml = serde_norway::Deserializer::from_str(text);
    let read: Result<Strict, _> = serde_path_to_error::deserialize(yaml);
    read.map(|Strict(value)| value).map_err(|error| {
        let text = error.inner().to_string();
        // The path tells the position better than the begin of the map that contains it.
        match error.inner().location() {
            Some(place) if error.path().iter().len() > 0 => {
                let place = format!(" at line {} column {}", place.line(), place.column());
                Error::from_serde(error.path(), text.strip_suffix(&place).unwrap_or(&text))
            }
            _ => Error::from_serde(error.path(), &text),
        }
    })
}

/// A JSON value that was deserialized with these strict checks.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, number, list or map without a YAML tag")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number must be finite; hint: write its digits"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    /// Reads an empty document as null.
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "duplicate key `{key}`; hint: keep one of the two"
                )));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_lists_and_scalars_are_kept() {
        let value = read("a: [1, -2, 0.5, x]\nb: {c: true, d: }\n").unwrap();
        assert_eq!(value, json!({ "a": [1, -2, 0.5, "x"], "b": { "c": true, "d": null } }));
    }

    #[test]
    fn what_json_would_lose_is_an_error() {
        for (text, expected) in [
            ("a:\n- b: 1\n  b: 2\n", "a[0]: duplicate key `b`; hint: keep one of the two"),
            ("a: 1\na: 2\n", "file: duplicate key `a`; hint: keep one of the two"),
            ("a: .inf\n", "a: a number must be finite; hint: write its digits"),
            (
                "a: !cut {}\n",
                "a: invalid type: enum; hint: expected a string, number, list or map without a YAML tag",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_yaml_or_blows_up_is_an_error() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        assert!(error("a: [\n").contains("at line 2 column 1"), "{}", error("a: [\n"));
        assert!(error("a: 1\n---\nb: 1\n").contains("more than one document"));
        assert!(error("a: &x [*x]\n").contains("recursion limit"));
        let laughs: String = (1..10)
            .map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")))
            .collect();
        assert!(error(&format!("a0: &a0 x\n{laughs}")).contains("repetition limit"));
    }
}
