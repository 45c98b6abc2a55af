//! Parses and validates query parameters and option bodies as Kubernetes does: list, watch, create, update,
//! patch and delete options. Handlers call it first.

mod delete;

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use proto_api::field::{Error, ErrorList, Path};
use proto_api::status::Status;

pub use delete::DeleteOptions;

const META_GROUP: &str = "meta.k8s.io";
/// Maximum of `timeoutSeconds`, a year; longer values are cut to it, so that no deadline overflows a clock.
const TIMEOUT_MAX_SECONDS: i64 = 365 * 24 * 3600;

/// A decoded query: every value of each key, in order.
#[derive(Debug, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// Decodes a raw query (`application/x-www-form-urlencoded`).
    pub fn parse(raw: &str) -> Self {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key)).or_default().push(decode(value));
        }
        Self(map)
    }

    /// Returns the first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.first()).map(String::as_str)
    }

    /// Returns the first value of a key, or the empty string.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// Returns every value of a key.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns a boolean: any value but `false` and `0` is true.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// Parses a signed integer.
    ///
    /// # Errors
    ///
    /// 400 with the error text of Go's parser.
    pub fn int(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| bad_int(text)),
        }
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn bad_int(text: &str) -> Status {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let why = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
}

/// How the resourceVersion of a list or watch is to be matched (`resourceVersionMatch`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VersionMatch {
    /// Exactly that revision.
    Exact,
    /// That revision or a later one.
    NotOlderThan,
}

/// The fields of metav1.ListOptions.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `labelSelector`, unparsed.
    pub label_selector: String,
    /// `fieldSelector`, unparsed.
    pub field_selector: String,
    /// Whether `allowWatchBookmarks` was given.
    pub allow_bookmarks: bool,
    /// `resourceVersion`; empty where unset.
    pub resource_version: String,
    /// `resourceVersionMatch`; `None` where unset.
    pub version_match: Option<VersionMatch>,
    /// `timeoutSeconds`, at most a year; `None` where unset.
    pub timeout_seconds: Option<i64>,
    /// `limit`; 0 for no limit.
    pub limit: usize,
    /// `continue`; empty where unset.
    pub continue_token: String,
    /// `sendInitialEvents`; `None` where unset.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Parses and validates the options; `watch` selects the rules of watches instead of those of lists.
    ///
    /// # Errors
    ///
    /// 400 for options that do not parse, 422 for options that may not be combined.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let limit = query.int("limit")?.unwrap_or(0);
        let timeout_seconds = query.int("timeoutSeconds")?.map(|seconds| seconds.min(TIMEOUT_MAX_SECONDS));
        let mut errs = ErrorList::default();
        let raw_match = query.text("resourceVersionMatch");
        let send_initial_events = query.flag("sendInitialEvents");
        if watch {
            validate_watch(query, raw_match, send_initial_events, &mut errs);
        } else {
            validate_list(query, raw_match, send_initial_events, &mut errs);
        }
        if !errs.is_empty() {
            return Err(Status::invalid(META_GROUP, "ListOptions", "", errs));
        }
        Ok(Self {
            label_selector: query.text("labelSelector").to_owned(),
            field_selector: query.text("fieldSelector").to_owned(),
            allow_bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            resource_version: query.text("resourceVersion").to_owned(),
            version_match: match raw_match {
                "Exact" => Some(VersionMatch::Exact),
                "NotOlderThan" => Some(VersionMatch::NotOlderThan),
                _ => None,
            },
            timeout_seconds,
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: query.text("continue").to_owned(),
            send_initial_events,
        })
    }

    /// Returns the resourceVersion as a number; `None` where unset.
    ///
    /// # Errors
    ///
    /// 400 as Kubernetes words it.
    pub fn version(&self) -> Result<Option<u64>, Status> {
        if self.resource_version.is_empty() {
            return Ok(None);
        }
        let text = &self.resource_version;
        text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!(
                "invalid resource version: resourceVersion: Invalid value: {text:?}: {}",
                bad_uint(text)
            ))
        })
    }
}

/// Returns the error text of Go's `strconv.ParseUint` for `text`.
pub fn bad_uint(text: &str) -> String {
    let why = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    format!("strconv.ParseUint: parsing {text:?}: {why}")
}

fn validate_list(query: &Query, raw_match: &str, initial: Option<bool>, errs: &mut ErrorList) {
    let at = Path::new("resourceVersionMatch");
    let version = query.text("resourceVersion");
    if !raw_match.is_empty() {
        if version.is_empty() {
            errs.push(Error::forbidden(
                &at,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !query.text("continue").is_empty() {
            errs.push(Error::forbidden(&at, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if !matches!(raw_match, "Exact" | "NotOlderThan") {
            errs.push(Error::not_supported(&at, raw_match, &["Exact", "NotOlderThan", ""]));
        }
        if raw_match == "Exact" && version == "0" {
            errs.push(Error::forbidden(
                &at,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if initial.is_some() {
        errs.push(Error::forbidden(
            &Path::new("sendInitialEvents"),
            "sendInitialEvents is forbidden for list",
        ));
    }
}

fn validate_watch(query: &Query, raw_match: &str, initial: Option<bool>, errs: &mut ErrorList) {
    let at = Path::new("resourceVersionMatch");
    if initial.is_some() && raw_match != "NotOlderThan" {
        errs.push(Error::forbidden(
            &at,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !raw_match.is_empty() {
        if initial.is_none() {
            errs.push(Error::forbidden(
                &at,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if raw_match != "NotOlderThan" {
            errs.push(Error::not_supported(&at, raw_match, &["NotOlderThan"]));
        }
        if !query.text("continue").is_empty() {
            errs.push(Error::forbidden(&at, "resourceVersionMatch is forbidden when continue is provided"));
        }
    }
}

/// The fields that metav1.CreateOptions, UpdateOptions and PatchOptions share.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Whether `dryRun=All` was given.
    pub dry_run: bool,
    /// `fieldValidation`, validated but not parsed.
    pub field_validation: String,
    /// `fieldManager`; empty where unset.
    pub field_manager: String,
    /// `force` (server-side apply only); `None` where unset.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// Parses and validates the options; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    ///
    /// # Errors
    ///
    /// 422 about the options object.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, Status> {
        let mut errs = ErrorList::default();
        let dry_run = dry_run(query.all("dryRun").iter().map(String::as_str), &mut errs);
        validate_field_manager(query.text("fieldManager"), &mut errs);
        let mode = query.text("fieldValidation");
        if !matches!(mode, "" | "Ignore" | "Warn" | "Strict") {
            let known = ["", "Ignore", "Strict", "Warn"];
            errs.push(Error::not_supported(&Path::new("fieldValidation"), mode, &known));
        }
        if !errs.is_empty() {
            return Err(Status::invalid(META_GROUP, kind, "", errs));
        }
        Ok(Self {
            dry_run,
            field_validation: mode.to_owned(),
            field_manager: query.text("fieldManager").to_owned(),
            force: query.flag("force"),
        })
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errs: &mut ErrorList) -> bool {
    let mut dry = false;
    for value in values {
        if value == "All" {
            dry = true;
        } else if !value.is_empty() {
            errs.push(Error::not_supported(&Path::new("dryRun"), value, &["All"]));
        }
    }
    dry
}

fn validate_field_manager(name: &str, errs: &mut ErrorList) {
    let at = Path::new("fieldManager");
    if name.chars().count() > 128 {
        errs.push(Error::too_long(&at, 128));
    }
    if let Some((i, bad)) = name.char_indices().find(|(_, c)| c.is_control()) {
        errs.push(Error::invalid(
            &at,
            name,
            format!("invalid character {bad:?} at position {i}: should be printable"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_decodes_plus_and_percent() {
        let query = Query::parse("labelSelector=a+in+%28b%2Cc%29&command=a&command=b");
        assert_eq!(query.text("labelSelector"), "a in (b,c)");
        assert_eq!(query.all("command"), ["a", "b"]);
    }

    #[test]
    fn a_limit_that_is_no_number_is_answered_in_gos_words() {
        let error = ListOptions::parse(&Query::parse("limit=x"), false).expect_err("400");
        assert_eq!(
            (error.code, error.message.as_str()),
            (400, "strconv.ParseInt: parsing \"x\": invalid syntax")
        );
    }

    #[test]
    fn a_list_refuses_what_belongs_to_a_watch() {
        for query in [
            "sendInitialEvents=true",
            "resourceVersionMatch=Exact",
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersion=1&resourceVersionMatch=Newest",
        ] {
            assert_eq!(
                ListOptions::parse(&Query::parse(query), false).expect_err(query).code,
                422,
                "{query}"
            );
        }
    }

    #[test]
    fn initial_events_need_not_older_than() {
        let watch = |q| ListOptions::parse(&Query::parse(q), true);
        assert_eq!(watch("sendInitialEvents=true").expect_err("no match").code, 422);
        assert_eq!(watch("resourceVersionMatch=NotOlderThan").expect_err("no initial events").code, 422);
        assert!(watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").is_ok());
    }
}
