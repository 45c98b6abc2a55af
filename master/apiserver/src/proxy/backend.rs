//! Resolves the destination of a proxy request: `[SCHEME:]NAME[:PORT]` of a pod, a service or a node, to an
//! address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto_api::status::Status;
use serde_json::Value;

use crate::api::Api;
use crate::context::Context;
use crate::dial::{NodeAddress, check_proxyable, node_address};
use crate::registry::{Registry, key, metadata};
use crate::request_info::RequestInfo;

/// Destination of a proxy request.
#[derive(Debug)]
pub enum ProxyDestination {
    /// A node's HTTPS server.
    Node(NodeAddress),
    /// An address in the pod network, or another port of a node.
    Plain(SocketAddr),
}

/// Finds the destination of a proxy request, and the path to request from it.
///
/// # Errors
///
/// 400 for a malformed name or an address that is not allowed, 404 for no such object, 503 for a service
/// without endpoints.
pub async fn locate(api: &Arc<Api>, ctx: &Context) -> Result<(ProxyDestination, String), Status> {
    let info = &ctx.info;
    api.registry.barrier().await?;
    let Some((scheme, name, port)) = split(&info.name) else {
        return Err(Status::bad_request(format!(
            "invalid {} request {:?}",
            info.resource.trim_end_matches('s'),
            info.name
        )));
    };
    let path = match path_after_proxy(&info.path, info) {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    let registry = &api.registry;
    let backend = match info.resource.as_str() {
        "nodes" => node(registry, name, port)?,
        "pods" => ProxyDestination::Plain(pod(registry, &info.namespace, name, port)?),
        _ => ProxyDestination::Plain(service(registry, &info.namespace, name, port)?),
    };
    if scheme == "https" && matches!(backend, ProxyDestination::Plain(_)) {
        return Err(Status::service_unavailable(
            "https backends other than nodes' own servers are not served yet",
        ));
    }
    Ok((backend, path))
}

/// Splits a proxy name into scheme, name and port; `None` where it is malformed.
fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some((scheme, name, port))
}

fn number(port: &str) -> Result<u16, Status> {
    port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))
}

/// Returns the part of a path after `/proxy`; empty where nothing follows.
pub fn path_after_proxy<'a>(path: &'a str, info: &RequestInfo) -> &'a str {
    // Number of slashes up to the end of `/proxy/` in `api/v1/nodes/NAME/proxy` and
    // `api/v1/namespaces/NAMESPACE/RESOURCE/NAME/proxy`.
    let segments = if info.namespace.is_empty() { 5 } else { 7 };
    let mut at = path.len() - path.trim_start_matches('/').len();
    for _ in 0..segments {
        match path[at..].find('/') {
            Some(slash) => at += slash + 1,
            None => return "",
        }
    }
    &path[at - 1..]
}

/// Returns the node's HTTPS server, which is shown the API server's certificate, or another port of the node
/// as plain TCP.
fn node(registry: &Registry, name: &str, port: &str) -> Result<ProxyDestination, Status> {
    let server = node_address(registry, name)?;
    let port = if port.is_empty() { server.address.port() } else { number(port)? };
    let address = SocketAddr::new(server.address.ip(), port);
    check_proxyable(registry, address)?;
    Ok(if address == server.address {
        ProxyDestination::Node(server)
    } else {
        ProxyDestination::Plain(address)
    })
}

fn pod(registry: &Registry, namespace: &str, name: &str, port: &str) -> Result<SocketAddr, Status> {
    let pod =
        registry.peek("", "pods", namespace, name).ok_or_else(|| Status::not_found("", "pods", name))?;
    let ip = pod.pointer("/status/podIP").and_then(Value::as_str).and_then(|ip| ip.parse::<IpAddr>().ok());
    let Some(ip) = ip else { return Err(Status::bad_request("address not allowed")) };
    let port = if port.is_empty() {
        let first = pod.pointer("/spec/containers/0/ports/0/containerPort").and_then(Value::as_u64);
        first.and_then(|p| u16::try_from(p).ok()).unwrap_or(80)
    } else {
        number(port)?
    };
    let address = SocketAddr::new(ip, port);
    check_proxyable(registry, address)?;
    Ok(address)
}

fn service(registry: &Registry, namespace: &str, name: &str, port: &str) -> Result<SocketAddr, Status> {
    let service = registry
        .peek("", "services", namespace, name)
        .ok_or_else(|| Status::not_found("", "services", name))?;
    let port_name = service_port(&service, name, port)?;
    let mut ready = Vec::new();
    for slice in slices(registry, namespace, name) {
        let ports = slice.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let wanted =
            ports.iter().find(|p| p.get("name").and_then(Value::as_str).unwrap_or_default() == port_name);
        let Some(number) = wanted.and_then(|p| p.get("port")).and_then(Value::as_u64) else { continue };
        let Ok(number) = u16::try_from(number) else { continue };
        for endpoint in slice.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
            if endpoint.pointer("/conditions/ready") == Some(&Value::Bool(false)) {
                continue;
            }
            let ip = address_of_pod(registry, namespace, endpoint);
            ready.extend(ip.map(|ip| SocketAddr::new(ip, number)));
        }
    }
    if ready.is_empty() {
        return Err(Status::service_unavailable(format!("no endpoints available for service {name:?}")));
    }
    let pick = registry.random.u64() % ready.len() as u64;
    let address = ready[usize::try_from(pick).unwrap_or(0)];
    check_proxyable(registry, address)?;
    Ok(address)
}

/// Returns the address of an endpoint where the pod it refers to has that address; anyone who may write
/// EndpointSlices could name any address.
fn address_of_pod(registry: &Registry, namespace: &str, endpoint: &Value) -> Option<IpAddr> {
    let address = endpoint.pointer("/addresses/0").and_then(Value::as_str)?;
    let target = endpoint.get("targetRef")?;
    let text = |key: &str| target.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("namespace") != namespace {
        return None;
    }
    let pod = registry.peek("", "pods", namespace, text("name"))?;
    let ips = pod.pointer("/status/podIPs").and_then(Value::as_array)?;
    let own = ips.iter().any(|ip| ip.get("ip").and_then(Value::as_str) == Some(address));
    if own { address.parse().ok() } else { None }
}

/// Returns the name of the port that is meant: the one named, the one with that number, or the first one.
fn service_port(service: &Value, name: &str, port: &str) -> Result<String, Status> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let name_of = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if port.is_empty() {
        return Ok(ports.first().map(name_of).unwrap_or_default());
    }
    if let Ok(number) = port.parse::<u64>() {
        let found = ports.iter().find(|p| p.get("port").and_then(Value::as_u64) == Some(number));
        return found.map(name_of).ok_or_else(|| {
            Status::service_unavailable(format!("no service port {number} found for service {name:?}"))
        });
    }
    Ok(port.to_owned())
}

fn slices(registry: &Registry, namespace: &str, service: &str) -> Vec<Value> {
    let Some(kind) = proto_api::kinds::by_resource("discovery.k8s.io", "v1", "endpointslices") else {
        return Vec::new();
    };
    let page = registry.store().range(&key::prefix(kind, namespace), None, 0, None);
    let objects = page.map(|p| p.objects).unwrap_or_default();
    objects
        .iter()
        .filter_map(|o| crate::registry::object::value(o, o.mod_revision).ok())
        .filter(|slice| !metadata::is_deleting(slice))
        .filter(|slice| {
            let labels = crate::registry::object::labels(slice);
            labels.get("kubernetes.io/service-name").map(String::as_str) == Some(service)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_names_have_an_optional_scheme_and_port() {
        assert_eq!(split("web"), Some(("", "web", "")));
        assert_eq!(split("web:http"), Some(("", "web", "http")));
        assert_eq!(split("https:web:443"), Some(("https", "web", "443")));
        assert_eq!(split("ftp:web:21"), None);
        assert_eq!(split(""), None);
    }

    #[test]
    fn the_path_behind_the_proxy_is_what_follows_it() {
        let info = RequestInfo { namespace: "pods".to_owned(), ..RequestInfo::default() };
        let of = |path| path_after_proxy(path, &info);
        assert_eq!(of("/api/v1/namespaces/pods/pods/p:80/proxy"), "");
        assert_eq!(of("/api/v1/namespaces/pods/pods/p:80/proxy/a/pods/p:80/proxy/b"), "/a/pods/p:80/proxy/b");
    }
}
