//! Parses struct tags and comment markers of Go fields, and makes descriptions from comments as openapi-gen
//! does.

/// Returns the value of one key in a Go struct tag: `json:"a,omitempty" protobuf:"..."`.
pub fn struct_tag<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = tags;
    while let Some(colon) = rest.find(":\"") {
        let name = rest[..colon].trim_start();
        let value = &rest[colon + 2..];
        let end = value.find('"')?;
        if name == key {
            return Some(&value[..end]);
        }
        rest = &value[end + 1..];
    }
    None
}

/// Returns the values of all `+marker=value` in comment lines; empty for a bare `+marker`.
pub fn markers<'a>(comments: &'a [String], name: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for line in comments {
        let Some(marker) = line.trim().strip_prefix('+') else { continue };
        match marker.split_once('=') {
            Some((key, value)) if key == name => found.push(value.trim()),
            None if marker.trim() == name => found.push(""),
            _ => {}
        }
    }
    found
}

/// Makes the description that openapi-gen makes: lines joined, blank lines kept as paragraphs, indented
/// lines on lines of their own, markers and TODOs dropped, everything after `---` dropped.
pub fn description(comments: &[String]) -> String {
    let mut out = String::new();
    for line in comments {
        let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
        let leading = line.trim_start();
        if line == "---" {
            break;
        }
        if line.is_empty() {
            out.pop();
            out.push_str("\n\n");
        } else if leading.starts_with("TODO") || leading.starts_with('+') {
            continue;
        } else if line.starts_with([' ', '\t']) {
            out.pop();
            out.push_str(&format!("\n{line}\n"));
        } else {
            out.push_str(line);
            out.push(' ');
        }
    }
    out.trim_end().trim_start_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_tag_is_found_by_its_key() {
        let tags = r#"json:"a,omitempty" patchStrategy:"merge" protobuf:"bytes,1,opt,name=a""#;
        assert_eq!(struct_tag(tags, "patchStrategy"), Some("merge"));
        assert_eq!(struct_tag(tags, "patchMergeKey"), None);
    }

    #[test]
    fn comments_become_a_description_without_markers() {
        let lines: Vec<String> = [" One", " two.", " +optional", " TODO: no", "", " Three"]
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(description(&lines), "One two.\n\nThree");
        assert_eq!(markers(&lines, "optional"), [""]);
    }
}
