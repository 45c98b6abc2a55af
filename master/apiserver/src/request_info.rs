//! RequestInfo: verb, group, version, resource, subresource, namespace and name of a request, parsed from its
//! method, path and query as Kubernetes' RequestInfo resolver does. `chain.rs` makes it once per request; the
//! authorizer, metrics and handlers read it.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// The parsed target of a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestInfo {
    /// Whether the path names a resource; otherwise only `verb` (the method in lower case) and `path` count.
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the method.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The namespace in the path; for a Namespace object, its own name.
    pub namespace: String,
    /// The plural resource name.
    pub resource: String,
    /// The subresource, such as `status`; empty for none.
    pub subresource: String,
    /// The object's name; empty on collections.
    pub name: String,
    /// Path parts after the subresource (`proxy` only).
    pub rest: Vec<String>,
    /// Whether the path uses the deprecated `/watch/` prefix.
    pub watch_prefix: bool,
}

/// Subresources of `namespaces`; any other part after `namespaces/NAME` is a resource in that namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Parses the target of a request.
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        let path = percent_decode_str(uri.path()).decode_utf8_lossy().into_owned();
        let mut info =
            Self { verb: method.as_str().to_ascii_lowercase(), path: path.clone(), ..Self::default() };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let group_parts = match parts.first().copied() {
            Some("api") => 2,
            Some("apis") => 3,
            _ => return info,
        };
        if parts.len() <= group_parts {
            return info;
        }
        let mut rest = parts.split_off(group_parts);
        info.group = if group_parts == 3 { parts[1].to_owned() } else { String::new() };
        info.version = parts[group_parts - 1].to_owned();
        info.is_resource = true;
        info.verb = method_verb(method).to_owned();
        if rest.first() == Some(&"watch") && rest.len() > 1 {
            rest.remove(0);
            info.watch_prefix = true;
            info.verb = "watch".to_owned();
        }
        info.fill_resource(&rest);
        info.refine_verb(uri.query().unwrap_or_default());
        info
    }

    fn fill_resource(&mut self, rest: &[&str]) {
        let mut rest = rest;
        if rest[0] == "namespaces"
            && let Some(namespace) = rest.get(1)
        {
            self.namespace = (*namespace).to_owned();
            if rest.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&rest[2]) {
                rest = &rest[2..];
            }
        }
        let part = |at: usize| rest.get(at).map(|p| (*p).to_owned()).unwrap_or_default();
        self.resource = part(0);
        self.name = part(1);
        self.subresource = part(2);
        self.rest = rest.iter().skip(3).map(|p| (*p).to_owned()).collect();
    }

    fn refine_verb(&mut self, query: &str) {
        if self.name.is_empty() && self.verb == "get" {
            self.verb = if wants_watch(query) { "watch" } else { "list" }.to_owned();
        }
        if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
        // exec, attach and port-forward open a session: also the GET of a WebSocket is authorized as create.
        if self.resource == "pods"
            && self.verb == "get"
            && matches!(self.subresource.as_str(), "exec" | "attach" | "portforward")
        {
            self.verb = "create".to_owned();
        }
    }

    /// Returns whether the request may stay open for long; it is then exempt from deadlines and in-flight
    /// limits.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(self.subresource.as_str(), "proxy" | "attach" | "exec" | "log" | "portforward")
    }

    /// Returns whether the request may change objects.
    pub fn is_mutating(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Returns whether `watch` is set; as in Kubernetes, any value but `false` and `0` is true.
fn wants_watch(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        key == "watch" && !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().expect("a uri"))
    }

    #[test]
    fn a_namespaced_subresource_is_taken_apart() {
        let got = info(Method::PUT, "/apis/apps/v1/namespaces/default/deployments/web/scale");
        assert_eq!(
            (got.verb.as_str(), got.group.as_str(), got.version.as_str(), got.namespace.as_str()),
            ("update", "apps", "v1", "default")
        );
        assert_eq!(
            (got.resource.as_str(), got.name.as_str(), got.subresource.as_str()),
            ("deployments", "web", "scale")
        );
    }

    #[test]
    fn a_namespace_has_itself_as_namespace_and_keeps_its_subresources() {
        let got = info(Method::GET, "/api/v1/namespaces/x");
        assert_eq!(
            (got.resource.as_str(), got.name.as_str(), got.namespace.as_str()),
            ("namespaces", "x", "x")
        );
        let got = info(Method::PUT, "/api/v1/namespaces/x/finalize");
        assert_eq!((got.resource.as_str(), got.subresource.as_str()), ("namespaces", "finalize"));
    }

    #[test]
    fn collections_are_listed_watched_and_delete_as_collections() {
        assert_eq!(info(Method::GET, "/api/v1/pods").verb, "list");
        assert_eq!(info(Method::GET, "/api/v1/pods?watch=true").verb, "watch");
        assert_eq!(info(Method::GET, "/api/v1/pods?watch=0").verb, "list");
        assert_eq!(info(Method::DELETE, "/api/v1/namespaces/a/pods").verb, "deletecollection");
        assert_eq!(info(Method::GET, "/api/v1/watch/namespaces/a/pods").verb, "watch");
    }

    #[test]
    fn a_websocket_exec_is_a_create() {
        assert_eq!(info(Method::GET, "/api/v1/namespaces/a/pods/p/exec?command=sh").verb, "create");
    }

    #[test]
    fn paths_outside_the_api_are_not_resources() {
        for path in ["/healthz", "/api", "/apis", "/apis/apps", "/apis/apps/v1", "/api/v1", "/"] {
            assert!(!info(Method::GET, path).is_resource, "{path}");
        }
    }

    #[test]
    fn proxy_keeps_the_rest_of_the_path() {
        let got = info(Method::GET, "/api/v1/namespaces/a/pods/p:80/proxy/x/y");
        assert_eq!((got.name.as_str(), got.rest.join("/")), ("p:80", "x/y".to_owned()));
    }
}
