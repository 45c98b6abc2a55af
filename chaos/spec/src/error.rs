//! The one error of this crate: a field, what is wrong with it, and what to do.
//! `document`, `experiment` and the forms of the faults make it; the command
//! line prints it as one line.

/// Parts the cause from the hint, in an [`Error`] and in the messages that our
/// `Deserialize` code gives to serde, which carries nothing but a string.
pub(crate) const HINT: &str = "; hint: ";

/// What is wrong with an experiment file, as `path: cause; hint: hint` on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {cause}{HINT}{hint}")]
pub struct Error {
    /// Path of the field, as `spec.schedule[2].fault.cut.from`; `file` when the
    /// text is no YAML at all.
    pub path: String,
    /// What is wrong.
    pub cause: String,
    /// What to write instead.
    pub hint: String,
}

impl Error {
    /// An error at `path`.
    pub(crate) fn new(path: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { path: path.into(), cause: cause.into(), hint: hint.into() }
    }

    /// From what serde said at `path`: finds our own hint in it, or makes one of
    /// what serde expected.
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

/// One line that steers no terminal, whatever it quotes from the file.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// What the word at `path` stands for.
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
