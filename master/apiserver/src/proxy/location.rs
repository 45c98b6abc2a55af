//! Finds the source of a pod's logs and streams: the node the pod runs on, and the path and parameters to
//! send to the node's HTTPS server.

use std::fmt::Write as _;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proto_api::field::{Error, ErrorList, Path};
use proto_api::schema::time;
use proto_api::status::Status;
use serde_json::Value;

use crate::api::Api;
use crate::context::Context;
use crate::dial::{NodeAddress, node_address};
use crate::options::Query;
use crate::registry::{Target, object};

/// Characters that must be escaped in a query value: all but RFC 3986's unreserved ones.
const KEEP: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request to the HTTPS server of a node.
#[derive(Debug)]
pub struct NodeRequest {
    /// The node and the address of its server.
    pub node: NodeAddress,
    /// Path and query of the request.
    pub uri: String,
}

/// A query string built from pairs, with its leading `?`.
#[derive(Default)]
struct Pairs(String);

impl Pairs {
    fn add(&mut self, key: &str, value: &str) {
        let sep = if self.0.is_empty() { '?' } else { '&' };
        // Writing into a String does not fail.
        let _ = write!(self.0, "{sep}{key}={}", utf8_percent_encode(value, KEEP));
    }
}

async fn pod(api: &Arc<Api>, ctx: &Context) -> Result<Value, Status> {
    let kind = proto_api::kinds::by_resource("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    let target = Target::new(kind, &ctx.info.namespace);
    let found = api.registry.get(ctx, target, &ctx.info.name, None).await?;
    object::value(&found, found.mod_revision)
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    containers
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("name").and_then(Value::as_str).map(str::to_owned))
        .collect()
}

/// Returns the container that is meant: the named one, or the only one of the pod.
fn container(pod: &Value, pod_name: &str, asked: &str) -> Result<String, Status> {
    let (main, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    if asked.is_empty() {
        return match main.as_slice() {
            [only] if init.is_empty() && ephemeral.is_empty() => Ok(only.clone()),
            [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
            _ => {
                let mut text = format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    main.join(" ")
                );
                if !init.is_empty() {
                    let _ = write!(text, " or one of the init containers: [{}]", init.join(" "));
                }
                if !ephemeral.is_empty() {
                    let _ = write!(text, " or one of the ephemeral containers: [{}]", ephemeral.join(" "));
                }
                Err(Status::bad_request(text))
            }
        };
    }
    if [&main, &init, &ephemeral].iter().any(|list| list.iter().any(|n| n == asked)) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
}

fn node_of(pod: &Value) -> Option<&str> {
    pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|n| !n.is_empty())
}

/// Returns the node request for a pod's logs; `None` for a pod that has no node yet.
///
/// # Errors
///
/// 400 for an invalid container, 404 for no such pod, 422 for invalid options.
pub async fn log(api: &Arc<Api>, ctx: &Context, query: &Query) -> Result<Option<NodeRequest>, Status> {
    let (namespace, name) = (&ctx.info.namespace, &ctx.info.name);
    let options = log_options(query, name)?;
    let pod = pod(api, ctx).await?;
    let container = container(&pod, name, query.text("container"))?;
    let Some(node) = node_of(&pod) else { return Ok(None) };
    let node = node_address(&api.registry, node)?;
    let uri = format!("/containerLogs/{namespace}/{name}/{container}{}", options.0);
    Ok(Some(NodeRequest { node, uri }))
}

fn log_options(query: &Query, name: &str) -> Result<Pairs, Status> {
    let mut pairs = Pairs::default();
    let mut errs = ErrorList::default();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) == Some(true) {
            pairs.add(flag, "true");
        }
    }
    let since_time = query.text("sinceTime");
    if !since_time.is_empty() {
        time::canonical(since_time, 0).map_err(Status::bad_request)?;
        pairs.add("sinceTime", since_time);
    }
    for (key, minimum) in [("sinceSeconds", 1), ("tailLines", 0), ("limitBytes", 1)] {
        let Some(value) = query.int(key)? else { continue };
        if value < minimum {
            let why =
                if minimum == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errs.push(Error::invalid(&Path::new(key), value, why));
        }
        if key == "sinceSeconds" && !since_time.is_empty() {
            errs.push(Error::forbidden(
                &Path::root(),
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        pairs.add(key, &value.to_string());
    }
    let stream = query.text("stream");
    if !stream.is_empty() {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            errs.push(Error::not_supported(&Path::new("stream"), stream, &["All", "Stderr", "Stdout"]));
        }
        pairs.add("stream", stream);
    }
    if errs.is_empty() { Ok(pairs) } else { Err(Status::invalid("", "PodLogOptions", name, errs)) }
}

/// Returns the node request for exec, attach or port-forward.
///
/// # Errors
///
/// 400 for an invalid container or a pod without a node, 404 for no such pod.
pub async fn stream(api: &Arc<Api>, ctx: &Context, query: &Query) -> Result<NodeRequest, Status> {
    let info = &ctx.info;
    let (namespace, name) = (&info.namespace, &info.name);
    let pod = pod(api, ctx).await?;
    let mut pairs = Pairs::default();
    if info.subresource == "portforward" {
        let node = assigned(api, &pod, name)?;
        for port in query.all("ports").iter().flat_map(|p| p.split(',')) {
            pairs.add("port", port);
        }
        return Ok(NodeRequest { node, uri: format!("/portForward/{namespace}/{name}{}", pairs.0) });
    }
    let container = container(&pod, name, query.text("container"))?;
    let node = assigned(api, &pod, name)?;
    let stdin = query.flag("stdin") == Some(true);
    let tty = query.flag("tty") == Some(true);
    let default = info.subresource == "attach";
    let stdout = query.flag("stdout").unwrap_or(default);
    let stderr = query.flag("stderr").unwrap_or(default && !tty);
    if !(stdin || stdout || stderr) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    for (key, on) in [("input", stdin), ("output", stdout), ("error", stderr), ("tty", tty)] {
        if on {
            pairs.add(key, "1");
        }
    }
    let verb = if info.subresource == "exec" {
        let command = query.all("command");
        if command.is_empty() {
            return Err(Status::bad_request("you must specify a command"));
        }
        command.iter().for_each(|part| pairs.add("command", part));
        "exec"
    } else {
        "attach"
    };
    Ok(NodeRequest { node, uri: format!("/{verb}/{namespace}/{name}/{container}{}", pairs.0) })
}

fn assigned(api: &Arc<Api>, pod: &Value, name: &str) -> Result<NodeAddress, Status> {
    let Some(node) = node_of(pod) else {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    };
    node_address(&api.registry, node)
}
