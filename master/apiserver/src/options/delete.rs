//! metav1.DeleteOptions, from a body or a query. `handlers/delete.rs` parses them, `registry/delete.rs`
//! carries them out.

use proto_api::field::{Error, ErrorList, Path};
use proto_api::status::Status;
use serde_json::Value;

use super::{META_GROUP, Query, dry_run};

/// The fields of metav1.DeleteOptions.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`; `None` where the client left it out.
    pub grace_period_seconds: Option<i64>,
    /// `preconditions.uid`; `None` for no such precondition.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`; `None` for no such precondition.
    pub resource_version: Option<String>,
    /// `orphanDependents` (deprecated); `None` where the client left it out.
    pub orphan_dependents: Option<bool>,
    /// `propagationPolicy`; `None` where the client left it out.
    pub propagation_policy: Option<String>,
    /// Whether `dryRun=All` was given.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options from a decoded body, or from the query where there is none.
    ///
    /// # Errors
    ///
    /// 400 for options that do not parse, 422 for options that are not allowed.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Status> {
        let mut errs = ErrorList::default();
        let options = match body {
            Some(body) => Self::from_body(body, &mut errs)?,
            None => Self {
                grace_period_seconds: query.int("gracePeriodSeconds")?,
                orphan_dependents: query.flag("orphanDependents"),
                propagation_policy: query.get("propagationPolicy").map(str::to_owned),
                dry_run: dry_run(query.all("dryRun").iter().map(String::as_str), &mut errs),
                ..Self::default()
            },
        };
        options.validate(&mut errs);
        if errs.is_empty() {
            Ok(options)
        } else {
            Err(Status::invalid(META_GROUP, "DeleteOptions", "", errs))
        }
    }

    fn from_body(body: &Value, errs: &mut ErrorList) -> Result<Self, Status> {
        let kind = body.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, "" | "DeleteOptions") {
            let version = body.get("apiVersion").and_then(Value::as_str).unwrap_or("v1");
            return Err(Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a DeleteOptions"
            )));
        }
        let wrong = |field: &str, want: &str| {
            Status::bad_request(format!(
                "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: json: cannot unmarshal \
                 into Go struct field DeleteOptions.{field} of type {want}"
            ))
        };
        let int = |v: &Value| v.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", "int64"));
        let text = |v: &Value, f: &str| v.as_str().map(str::to_owned).ok_or_else(|| wrong(f, "string"));
        let present = |key: &str| body.get(key).filter(|v| !v.is_null());
        let precondition =
            |key: &str| present("preconditions").and_then(|p| p.get(key)).filter(|v| !v.is_null());
        let dry_values = match present("dryRun") {
            None => Vec::new(),
            Some(v) => v.as_array().ok_or_else(|| wrong("dryRun", "[]string"))?.clone(),
        };
        Ok(Self {
            grace_period_seconds: present("gracePeriodSeconds").map(int).transpose()?,
            uid: precondition("uid").map(|v| text(v, "preconditions.uid")).transpose()?,
            resource_version: precondition("resourceVersion")
                .map(|v| text(v, "preconditions.resourceVersion"))
                .transpose()?,
            orphan_dependents: present("orphanDependents")
                .map(|v| v.as_bool().ok_or_else(|| wrong("orphanDependents", "bool")))
                .transpose()?,
            propagation_policy: present("propagationPolicy")
                .map(|v| text(v, "propagationPolicy"))
                .transpose()?,
            dry_run: dry_run(dry_values.iter().filter_map(Value::as_str), errs),
        })
    }

    fn validate(&self, errs: &mut ErrorList) {
        let at = Path::new("propagationPolicy");
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                errs.push(Error::invalid(
                    &at,
                    policy.as_str(),
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                errs.push(Error::not_supported(
                    &at,
                    policy.as_str(),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
            }
        }
    }

    /// Returns the propagation policy the client asked for: `Orphan`, `Background` or `Foreground`.
    pub fn policy(&self) -> Option<&str> {
        match self.orphan_dependents {
            Some(true) => Some("Orphan"),
            Some(false) => Some("Background"),
            None => self.propagation_policy.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_options_come_from_the_body_or_else_the_query() {
        let body = serde_json::json!({"kind": "DeleteOptions", "gracePeriodSeconds": 3, "preconditions": {"uid": "u"}});
        let options =
            DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9"), Some(&body)).expect("options");
        assert_eq!((options.grace_period_seconds, options.uid.as_deref()), (Some(3), Some("u")));
        let options = DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9"), None).expect("options");
        assert_eq!(options.grace_period_seconds, Some(9));
        let bad = serde_json::json!({"propagationPolicy": "Sometimes"});
        assert_eq!(DeleteOptions::parse(&Query::default(), Some(&bad)).expect_err("422").code, 422);
    }
}
