//! Warnings about pod specs that are valid but surprising or deprecated. Pods and workload kinds return them
//! to the client as `Warning` headers.

use std::collections::{BTreeMap, BTreeSet};

use proto_api::field::Path;
use proto_api::go::quote;
use serde_json::Value;

use super::super::ip;
use super::super::json_fields::{Entries, JsonFields};
use super::resources::quantity_of;

/// Maximum number of other ports with the same number that a port is compared with.
const PORTS_COMPARED: usize = 100;

const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Returns the warnings about a pod spec and its metadata; `path` is the root of a Pod or the path of a
/// template.
pub fn spec(spec: &Value, meta: &Value, path: &Path, template: bool) -> Vec<String> {
    let mut out = Vec::new();
    let at = path.child("spec");
    node_labels(spec, &at, &mut out);
    spread(spec, &at.child("topologySpreadConstraints"), &mut out);
    deprecated_annotations(
        meta.entries("annotations"),
        &path.child("metadata").child("annotations"),
        &mut out,
    );
    volumes(spec, &at.child("volumes"), &mut out);
    duplicates(spec, "hostAliases", "ip", &at, &mut out);
    duplicates(spec, "imagePullSecrets", "name", &at, &mut out);
    for (i, _) in spec.items("imagePullSecrets").iter().enumerate().filter(|(_, s)| s.text("name").is_empty())
    {
        let at = at.child("imagePullSecrets").index(i).child("name");
        out.push(format!("{at}: invalid empty name \"\""));
    }
    fractions(spec.entries("overhead"), &at.child("overhead"), &mut out);
    containers(spec, meta, path, template, &mut out);
    ports(spec, &at, &mut out);
    if spec.int("terminationGracePeriodSeconds") < 0 {
        let at = at.child("terminationGracePeriodSeconds");
        out.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    affinity(spec, &at.child("affinity"), &mut out);
    for (i, server) in spec.sub("dnsConfig").texts("nameservers").iter().enumerate() {
        out.extend(ip::warnings(&at.child("dnsConfig").child("nameservers").index(i), server));
    }
    for (i, alias) in spec.items("hostAliases").iter().enumerate() {
        out.extend(ip::warnings(&at.child("hostAliases").index(i).child("ip"), alias.text("ip")));
    }
    out
}

/// Returns the warning about a deprecated node label; `None` for any other label.
fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

fn node_labels(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (key, _) in spec.entries("nodeSelector").iter() {
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
        }
    }
    let affinity = spec.sub("affinity").sub("nodeAffinity");
    let base = path.child("affinity").child("nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in affinity.sub(required).items("nodeSelectorTerms").iter().enumerate() {
        let at = base.child(required).child("nodeSelectorTerms").index(i);
        node_term(term, false, &at, out);
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, weighted) in affinity.items(preferred).iter().enumerate() {
        let at = base.child(preferred).index(i).child("preference");
        node_term(weighted.sub("preference"), true, &at, out);
    }
}

fn node_term(term: &Value, preferred: bool, path: &Path, out: &mut Vec<String>) {
    for (i, expression) in term.items("matchExpressions").iter().enumerate() {
        let (key, at) = (expression.text("key"), path.child("matchExpressions").index(i));
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {key} is {message}", at.child("key")));
        }
        for (j, value) in expression.texts("values").iter().enumerate().filter(|_| preferred) {
            for message in proto_api::names::label_value(value) {
                let at = at.child("values").index(j);
                out.push(format!("{at}: {value} is invalid, {message}"));
            }
        }
    }
}

fn spread(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (i, constraint) in spec.items("topologySpreadConstraints").iter().enumerate() {
        let key = constraint.text("topologyKey");
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {key} is {message}", path.index(i).child("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            out.push(format!("{}: {NULL_SELECTOR}", path.index(i).child("labelSelector")));
        }
    }
}

fn deprecated_annotations(annotations: Entries<'_>, path: &Path, out: &mut Vec<String>) {
    const SYSCTLS: &str = "non-functional in v1.11+; use the \"sysctls\" field instead";
    for (key, message) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        ("security.alpha.kubernetes.io/sysctls", SYSCTLS),
        ("security.alpha.kubernetes.io/unsafe-sysctls", SYSCTLS),
    ] {
        if annotations.get(key).is_some() {
            out.push(format!("{}: {message}", path.key(key)));
        }
    }
}

fn volumes(spec: &Value, path: &Path, out: &mut Vec<String>) {
    const OLD: &[(&str, &str, &str)] = &[
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (i, volume) in spec.items("volumes").iter().enumerate() {
        for (_, shown, message) in OLD.iter().filter(|(key, _, _)| volume.has(key)) {
            out.push(format!("{}: {message}", path.index(i).child(shown)));
        }
    }
    for volume in spec.items("volumes") {
        overlaps(volume, out);
    }
}

/// A file in a volume and the source that provides it.
#[derive(Clone)]
struct File {
    path: String,
    source: String,
}

impl File {
    fn new(path: &str, source: &str) -> Self {
        Self { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
    }

    fn shown(&self) -> String {
        if self.source.is_empty() {
            quote(&self.path)
        } else {
            format!("{} ({})", quote(&self.path), self.source)
        }
    }

    fn overlaps(&self, other: &File) -> bool {
        let (a, b) = (format!("{}/", self.path), format!("{}/", other.path));
        !self.path.is_empty() && !other.path.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    }
}

fn files(source: &Value, named: &str) -> Vec<File> {
    source.items("items").iter().map(|item| File::new(item.text("path"), named)).collect()
}

fn report(volume: &str, what: &str, files: &[File], known: &mut Vec<File>, out: &mut Vec<String>) {
    for file in files {
        for other in known.iter().filter(|k| k.overlaps(file)) {
            out.push(format!(
                "volume {} ({what}): overlapping paths: {} with {}",
                quote(volume),
                file.shown(),
                other.shown()
            ));
        }
        known.push(file.clone());
    }
}

fn overlaps(volume: &Value, out: &mut Vec<String>) {
    let name = volume.text("name");
    for (key, what, named) in [
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "secretName"),
        ("downwardAPI", "DownwardAPI", ""),
    ] {
        let Some(source) = volume.at(key) else { continue };
        let what =
            if named.is_empty() { what.to_owned() } else { format!("{what} {}", quote(source.text(named))) };
        report(name, &what, &files(source, ""), &mut Vec::new(), out);
    }
    let mut known = Vec::new();
    for source in volume.sub("projected").items("sources") {
        if super::super::json_fields::is_zero(source) {
            out.push(format!("volume {} (Projected) has no sources provided", quote(name)));
            continue;
        }
        let list = if let Some(map) = source.at("configMap") {
            files(map, &format!("ConfigMap {}", quote(map.text("name"))))
        } else if let Some(secret) = source.at("secret") {
            files(secret, &format!("Secret {}", quote(secret.text("name"))))
        } else if let Some(downward) = source.at("downwardAPI") {
            files(downward, "DownwardAPI")
        } else if let Some(token) = source.at("serviceAccountToken") {
            vec![File::new(token.text("path"), "ServiceAccountToken")]
        } else {
            Vec::new()
        };
        report(name, "Projected", &list, &mut known, out);
    }
}

fn duplicates(spec: &Value, list: &str, key: &str, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, item) in spec.items(list).iter().enumerate() {
        if !seen.insert(item.text(key)) {
            let at = path.child(list).index(i).child(key);
            out.push(format!("{at}: duplicate {key} {}", quote(item.text(key))));
        }
    }
}

fn fractions(list: Entries<'_>, path: &Path, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let Some(value) = list.get(name).map(quantity_of).filter(|v| !v.is_whole()) else { continue };
        let value = quote(&value.to_string());
        out.push(format!("{}: fractional byte value {value} is invalid, must be an integer", path.key(name)));
    }
}

fn containers(spec: &Value, meta: &Value, path: &Path, template: bool, out: &mut Vec<String>) {
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let annotations = meta.entries("annotations");
    let annotated = path.child("metadata").child("annotations");
    let key = "seccomp.security.alpha.kubernetes.io/pod";
    if annotations.get(key).is_some() && !spec.sub("securityContext").has("seccompProfile") {
        out.push(format!("{}: {SECCOMP}", annotated.key(key)));
    }
    for (container, at) in super::visit(spec, &path.child("spec")) {
        let context = container.sub("securityContext");
        let name = container.text("name");
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if annotations.get(&key).is_some() && !context.has("seccompProfile") {
            out.push(format!("{}: {SECCOMP}", annotated.key(&key)));
        }
        let key = format!("{}{name}", super::annotations::APP_ARMOR);
        if template && annotations.get(&key).is_some() && !context.has("appArmorProfile") {
            let at = annotated.key(&key);
            out.push(format!("{at}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
        let resources = container.sub("resources");
        let at_resources = at.child("resources");
        for name in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                let value = resources.entries(list).get(name).map(quantity_of).filter(|v| !v.is_whole());
                if let Some(value) = value {
                    let at = at_resources.child(list).key(name);
                    let value = quote(&value.to_string());
                    out.push(format!("{at}: fractional byte value {value} is invalid, must be an integer"));
                }
            }
        }
        hidden_variables(container, &at.child("env"), out);
    }
}

fn hidden_variables(container: &Value, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, variable) in container.items("env").iter().enumerate() {
        let name = variable.text("name");
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let value = variable.text("value");
        if variable.has("valueFrom") || value == reference || !value.contains(&reference) {
            let name = quote(name);
            let at = path.index(i);
            out.push(format!(
                "{at}: hides previous definition of {name}, which may be dropped when using apply"
            ));
        }
    }
}

fn ports(spec: &Value, path: &Path, out: &mut Vec<String>) {
    let mut known: BTreeMap<String, Vec<(Path, &Value)>> = BTreeMap::new();
    let mut names: BTreeMap<&str, Path> = BTreeMap::new();
    let mut renamed = Vec::new();
    for (container, at) in super::visit(spec, path) {
        for (i, port) in container.items("ports").iter().enumerate() {
            let at = at.child("ports").index(i);
            let key = format!("{}/{}", port.int("containerPort"), port.text("protocol"));
            let others = known.entry(key).or_default();
            for (other_at, other) in others.iter() {
                if let Some(what) = conflict(port, other) {
                    out.push(format!("{at}: {what} with {other_at}"));
                }
            }
            if others.len() < PORTS_COMPARED {
                others.push((at.clone(), port));
            }
            let name = port.text("name");
            if let Some(first) = names.get(name).filter(|_| !name.is_empty()) {
                renamed.push(format!(
                    "{at}: duplicate port name {} with {first}, services and probes that select ports by name will \
                     use {first}",
                    quote(name)
                ));
            } else {
                names.insert(name, at);
            }
        }
    }
    out.append(&mut renamed);
}

fn conflict(port: &Value, other: &Value) -> Option<&'static str> {
    let (host, other_host) = (port.int("hostPort"), other.int("hostPort"));
    let (ip, other_ip) = (port.text("hostIP"), other.text("hostIP"));
    if ip == other_ip && host == other_host {
        Some("duplicate port definition")
    } else if host == 0 || other_host == 0 {
        Some("overlapping port definition")
    } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
        Some("dangerously ambiguous port definition")
    } else {
        None
    }
}

fn affinity(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = spec.sub("affinity").sub(kind);
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in affinity.items(required).iter().enumerate() {
            if !term.has("labelSelector") {
                let at = path.child(kind).child(required).index(i).child("labelSelector");
                out.push(format!("{at}: {NULL_SELECTOR}"));
            }
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, weighted) in affinity.items(preferred).iter().enumerate() {
            if !weighted.sub("podAffinityTerm").has("labelSelector") {
                let at = path.child(kind).child(preferred).index(i);
                let at = at.child("podAffinityTerm").child("labelSelector");
                out.push(format!("{at}: {NULL_SELECTOR}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn many_ports_of_one_number_are_not_each_compared_with_all_others() {
        let ports = vec![json!({"containerPort": 80, "protocol": "TCP"}); 3000];
        let pod = json!({"containers": [{"name": "c", "ports": ports}]});
        let warnings = spec(&pod, &Value::Null, &Path::root(), false);
        assert!(warnings.len() < 400_000, "{}", warnings.len());
        assert_eq!(
            warnings[0],
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"
        );
    }
}
