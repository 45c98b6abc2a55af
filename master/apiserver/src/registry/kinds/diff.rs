//! A unified diff of two objects, for error messages about fields that may not change.

use serde_json::Value;

/// Number of unchanged lines shown around a change.
const CONTEXT: usize = 3;
/// Maximum number of lines compared; where either side has more, all old lines are shown as removed and all
/// new ones as added.
const LIMIT: usize = 2000;

/// One line of the edit script.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Edit {
    Keep,
    Remove,
    Add,
}

/// Returns the unified diff of the pretty-printed values; empty when they are equal.
pub fn unified(old: &Value, new: &Value) -> String {
    let (old, new) = (pretty(old), pretty(new));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let script = edits(&old, &new);
    let mut out = String::new();
    for (from, to) in hunks(&script) {
        hunk(&script, from, to, &old, &new, &mut out);
    }
    out
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Returns the shortest edit script, found by longest common subsequence.
fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    if old.len() > LIMIT || new.len() > LIMIT {
        return [vec![Edit::Remove; old.len()], vec![Edit::Add; new.len()]].concat();
    }
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        let edit = if i < old.len() && j < new.len() && old[i] == new[j] {
            Edit::Keep
        } else if j == new.len()
            || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            Edit::Remove
        } else {
            Edit::Add
        };
        i += usize::from(edit != Edit::Add);
        j += usize::from(edit != Edit::Remove);
        out.push(edit);
    }
    out
}

/// Returns the ranges of the script to show: changes with their context, merged where they touch.
fn hunks(script: &[Edit]) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (at, _) in script.iter().enumerate().filter(|(_, e)| **e != Edit::Keep) {
        let (from, to) = (at.saturating_sub(CONTEXT), (at + CONTEXT + 1).min(script.len()));
        match out.last_mut() {
            Some(last) if last.1 >= from => last.1 = to,
            _ => out.push((from, to)),
        }
    }
    out
}

fn hunk(script: &[Edit], from: usize, to: usize, old: &[&str], new: &[&str], out: &mut String) {
    let count = |part: &[Edit], not: Edit| part.iter().filter(|e| **e != not).count();
    let (mut i, mut j) = (count(&script[..from], Edit::Add), count(&script[..from], Edit::Remove));
    let (olds, news) = (count(&script[from..to], Edit::Add), count(&script[from..to], Edit::Remove));
    out.push_str(&format!("@@ -{},{olds} +{},{news} @@\n", i + 1, j + 1));
    for edit in &script[from..to] {
        let (sign, line) = match edit {
            Edit::Keep => (' ', old[i]),
            Edit::Remove => ('-', old[i]),
            Edit::Add => ('+', new[j]),
        };
        out.push(sign);
        out.push_str(line);
        out.push('\n');
        i += usize::from(*edit != Edit::Add);
        j += usize::from(*edit != Edit::Remove);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_changed_value_is_one_hunk() {
        let text = unified(&json!({"a": 1, "b": 2}), &json!({"a": 1, "b": 3}));
        assert_eq!(text, "@@ -1,4 +1,4 @@\n {\n   \"a\": 1,\n-  \"b\": 2\n+  \"b\": 3\n }\n");
    }

    #[test]
    fn equal_values_differ_nowhere() {
        assert_eq!(unified(&json!({"a": [1]}), &json!({"a": [1]})), "");
    }
}
