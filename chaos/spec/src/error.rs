//! The error type of this crate: a field, what is wrong with it, and what to write instead. `document`,
//! `experiment` and the forms of the faults create it; the command line prints it as one line.

/// Separates the cause from the hint, in an [`Error`] and in messages that our `Deserialize` code gives to
/// serde, which can carry only a string.
pub(crate) const HINT: &str = "; hint: ";

/// An error in an experiment file, formatted as `path: cause; hint: hint` on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {cause}{HINT}{hint}")]
pub struct Error {
    /// Path of the field, as `spec.schedule[2].fault.cut.from`; `file` if the text is no YAML at all.
    pub path: String,
    /// What is wrong.
    pub cause: String,
    /// What to write instead.
    pub hint: String,
}

impl Error {
    /// Creates an error at `path`.
    pub(crate) fn new(path: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { path: path.into(), cause: cause.into(), hint: hint.into() }
    }

    /// Converts serde's message about `path`: takes the hint from the message if our code has put one there,
    /// else makes a hint of what serde expected.
    pub(crate) fn from_serde(path: &serde_path_to_error::Path, message: &str) -> Self {
        let path = printable(&path.to_string());
        let path = if path == "." { "file".to_owned() } else { path };
        let message = printable(message);
        let message = message.strip_prefix(&format!("{path}: ")).unwrap_or(&message);
        if let Some((cause, hint)) = message.split_once(HINT) {
            return Self::new(path, cause, hint);
        }
        if let Some((cause, expected)) = message.split_once(", expected ") {
            let cause = cause.replace("unknown variant", &format!("unknown {}", noun(&path)));
            return Self::new(path, cause, format!("expected {expected}"));
        }
        if let Some(field) = message.strip_prefix("missing field ") {
            return Self::new(path, message, format!("add {field} here"));
        }
        Self::new(path, message, "see chaos/experiments for files that work")
    }
}

/// Replaces control characters, so that text quoted from the file is one line and cannot control a terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Returns the noun for the value at `path`, for messages.
fn noun(path: &str) -> &str {
    let last = path.rsplit('.').next().unwrap_or(path);
    match last.split('[').next().unwrap_or(last) {
        "apiVersion" => "apiVersion",
        "fault" => "fault",
        "invariants" => "invariant",
        "kind" => "kind",
        "member" => "change of members",
        "shape" => "shape",
        "steadyState" => "probe",
        _ => "word",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_one_line_with_path_cause_and_hint() {
        let error = Error::new("spec.duration", "0s is too short", "take 60s");
        assert_eq!(error.to_string(), "spec.duration: 0s is too short; hint: take 60s");
    }

    #[test]
    fn the_noun_is_that_of_the_last_field() {
        assert_eq!(noun("spec.invariants[3]"), "invariant");
        assert_eq!(noun("spec.schedule[0].fault"), "fault");
        assert_eq!(noun("spec.schedule[0].fault.disk.kind"), "kind");
        assert_eq!(noun("else"), "word");
    }
}
