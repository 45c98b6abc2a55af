//! The downward API: a pod's own fields and its containers' resources as text, for volumes and environment
//! variables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{Error, amounts};

/// A pod with the values that only its node knows.
#[derive(Clone, Copy, Debug)]
pub struct PodFields<'a> {
    /// The pod object from the API server.
    pub pod: &'a Pod,
    /// Addresses of the node, the first is `status.hostIP`.
    pub host_ips: &'a [String],
    /// Addresses of the pod, the first is `status.podIP`; empty before its sandbox runs.
    pub pod_ips: &'a [String],
    /// Allocatable resources of the node: the value of a limit that is not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

impl PodFields<'_> {
    /// Returns the value of a `fieldRef`.
    pub fn field(&self, selector: &ObjectFieldSelector) -> Result<String, Error> {
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let path = selector.field_path.as_str();
        if let Some((map, key)) = subscript(path) {
            let map = match map {
                "metadata.labels" => meta.labels.as_ref(),
                "metadata.annotations" => meta.annotations.as_ref(),
                _ => return Err(Error::Invalid(format!("unsupported fieldPath: {path}"))),
            };
            return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
        }
        Ok(match path {
            "metadata.name" => meta.name.clone().unwrap_or_default(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "metadata.labels" => format_map(meta.labels.as_ref()),
            "metadata.annotations" => format_map(meta.annotations.as_ref()),
            "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            "spec.serviceAccountName" => {
                spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
            }
            "status.hostIP" => self.host_ips.first().cloned().unwrap_or_default(),
            "status.hostIPs" => self.host_ips.join(","),
            "status.podIP" => self.pod_ips.first().cloned().unwrap_or_default(),
            "status.podIPs" => self.pod_ips.join(","),
            _ => return Err(Error::Invalid(format!("unsupported fieldPath: {path}"))),
        })
    }

    /// Returns the value of a `resourceFieldRef`; `default_container` is used if the selector names no
    /// container.
    pub fn resource(
        &self,
        selector: &ResourceFieldSelector,
        default_container: &str,
    ) -> Result<String, Error> {
        let name = selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(default_container);
        let container =
            self.find_container(name).ok_or_else(|| Error::Invalid(format!("container {name} not found")))?;
        let (kind, resource) = selector.resource.split_once('.').ok_or_else(|| {
            Error::Invalid(format!("unsupported container resource : {}", selector.resource))
        })?;
        let resources = container.resources.as_ref();
        let quantity = match kind {
            "limits" => resources
                .and_then(|r| r.limits.as_ref())
                .and_then(|limits| limits.get(resource))
                .filter(|q| amounts::milli(q) != Some(0))
                .or_else(|| self.allocatable.get(resource)),
            "requests" => {
                resources.and_then(|r| r.requests.as_ref()).and_then(|requests| requests.get(resource))
            }
            _ => {
                return Err(Error::Invalid(format!(
                    "unsupported container resource : {}",
                    selector.resource
                )));
            }
        };
        let zero = Quantity("0".to_owned());
        let quantity = quantity.unwrap_or(&zero);
        let one = Quantity("1".to_owned());
        let divisor = selector.divisor.as_ref().filter(|d| amounts::milli(d) != Some(0)).unwrap_or(&one);
        let ratio = if resource == "cpu" {
            divide_up(amounts::milli(quantity), amounts::milli(divisor))
        } else {
            divide_up(amounts::whole(quantity), amounts::whole(divisor))
        };
        ratio
            .map(|value| value.to_string())
            .ok_or_else(|| Error::Invalid(format!("cannot divide {} by {}", quantity.0, divisor.0)))
    }

    fn find_container(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
    }
}

fn divide_up(value: Option<i64>, divisor: Option<i64>) -> Option<i64> {
    let (value, divisor) = (value?, divisor.filter(|d| *d > 0)?);
    Some(value / divisor + i64::from(value % divisor > 0))
}

/// Splits `metadata.labels['key']` into `("metadata.labels", "key")`; `None` if the path has no such
/// subscript.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// Formats a map as lines `key="value"`, sorted by key, values quoted as by Go's `%q`.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"nodeName": "node", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}
        }))
        .expect("a pod")
    }

    #[test]
    fn fields_and_resources_read_as_kubelet_writes_them() {
        let pod = pod();
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("2".to_owned()))]);
        let ips = ["10.42.0.5".to_owned()];
        let fields = PodFields { pod: &pod, host_ips: &ips, pod_ips: &ips, allocatable: &allocatable };
        let field = |path: &str| {
            fields.field(&ObjectFieldSelector { field_path: path.to_owned(), ..Default::default() }).unwrap()
        };
        assert_eq!(field("metadata.labels"), "a=\"x\\\"y\"\nb=\"2\"");
        assert_eq!(field("metadata.labels['b']"), "2");
        assert_eq!(field("status.podIPs"), "10.42.0.5");
        let resource = |name: &str, divisor: Option<&str>| {
            let divisor = divisor.map(|d| Quantity(d.to_owned()));
            let selector = ResourceFieldSelector { resource: name.to_owned(), divisor, container_name: None };
            fields.resource(&selector, "c").unwrap()
        };
        assert_eq!(resource("limits.cpu", None), "2", "an unset limit is the node's allocatable");
        assert_eq!(resource("requests.cpu", None), "1");
        assert_eq!(resource("requests.cpu", Some("1m")), "250");
        assert_eq!(resource("limits.memory", Some("1Mi")), "64");
        assert_eq!(resource("requests.memory", None), "0");
    }
}
