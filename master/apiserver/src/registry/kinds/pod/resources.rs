//! Compute resources: quantities, resource names, requests against limits, claims, and the resources of a
//! whole pod (KEP-2837). Called by `containers.rs` and `spec.rs`; `qos.rs` and `defaults.rs` use the sums.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use proto_api::quantity::Quantity;
use serde_json::Value;

use super::super::check::{NEGATIVE, Report, dns_label};
use super::super::json_fields::{Entries, JsonFields};

/// A parsed quantity; an absent one is zero.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Amount(Quantity);

impl Amount {
    /// Returns zero.
    pub fn zero() -> Self {
        Self(Quantity::zero())
    }

    /// Returns whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.0.sign() < 0
    }

    /// Returns whether the amount is above zero.
    pub fn is_positive(&self) -> bool {
        self.0.sign() > 0
    }

    /// Returns whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    /// Returns whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.0.is_whole()
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.0 += &other.0;
    }

    /// Returns the amount rounded up to whole units.
    pub fn units(&self) -> i64 {
        self.0.value()
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Parses a quantity (text, number, or absent); one that does not parse is zero, since the schema check ran
/// before.
pub fn quantity_of(value: &Value) -> Amount {
    let parsed = match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    };
    Amount(parsed.unwrap_or_else(Quantity::zero))
}

/// Amounts by resource name.
pub type Amounts<'a> = BTreeMap<&'a str, Amount>;

/// Returns the amounts in `requests` or `limits` of a container or a pod.
pub fn amounts(list: Entries<'_>) -> Amounts<'_> {
    list.iter().map(|(name, value)| (name, quantity_of(value))).collect()
}

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

const INTEGER: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Returns whether a resource is an extended one, outside Kubernetes' own domain, such as `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Where resources are listed, which decides the resource names that are accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Container,
    Pod,
}

fn resource_name(name: &str, place: Place, path: &Path, errs: &mut ErrorList) {
    let before = errs.len();
    errs.each(path, name, names::qualified_name(name));
    let huge = is_huge_page(name) || name.starts_with("requests.hugepages-");
    if errs.len() == before && !name.contains('/') && !STANDARD.contains(&name) && !huge {
        errs.invalid(path, name, "must be a standard resource type or fully qualified");
    }
    match place {
        Place::Container if !name.contains('/') => {
            if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
                errs.invalid(path, name, "must be a standard resource for containers");
            }
        }
        Place::Container => {
            if !is_native(name) && !is_extended(name) {
                errs.invalid(path, name, "doesn't follow extended resource name standard");
            }
        }
        Place::Pod => {
            let supported = matches!(name, "cpu" | "memory") || is_huge_page(name);
            if errs.len() == before && !supported {
                errs.unsupported(path, name, &["cpu", "memory"]);
            }
        }
    }
}

/// Checks that an amount is not negative, and that it is whole where the resource is a countable one.
pub fn resource_value(name: &str, value: &Amount, path: &Path, errs: &mut ErrorList) {
    if value.is_negative() {
        errs.invalid(path, value.to_string(), NEGATIVE);
    }
    if (INTEGER.contains(&name) || is_extended(name)) && !value.is_whole() {
        errs.invalid(path, value.to_string(), "must be an integer");
    }
}

/// Validates the `resources` of a container; `claims` are the names in `spec.resourceClaims`.
pub fn container(resources: &Value, claims: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    requirements(resources, Place::Container, claims, path, errs);
}

/// Validates `spec.overhead`.
pub fn overhead(list: Entries<'_>, path: &Path, errs: &mut ErrorList) {
    let limits = amounts(list);
    let mut seen = SeenResources::default();
    for (name, value) in &limits {
        listed(name, value, Place::Container, &path.child("limits").key(name), &mut seen, errs);
    }
    seen.finish(path, errs);
}

/// Whether huge pages were listed, and whether CPU or memory was, which huge pages require.
#[derive(Default)]
struct SeenResources {
    compute: bool,
    huge: bool,
}

impl SeenResources {
    fn finish(&self, path: &Path, errs: &mut ErrorList) {
        if self.huge && !self.compute {
            errs.forbidden(path, "HugePages require cpu or memory");
        }
    }
}

fn listed(
    name: &str,
    value: &Amount,
    place: Place,
    path: &Path,
    seen: &mut SeenResources,
    errs: &mut ErrorList,
) {
    resource_name(name, place, path, errs);
    resource_value(name, value, path, errs);
    seen.compute |= matches!(name, "cpu" | "memory");
    seen.huge |= is_huge_page(name);
}

fn huge_page_multiple(name: &str, value: &Amount, path: &Path, errs: &mut ErrorList) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    let size = quantity_of(&Value::from(size));
    let good = size.is_positive() && size.is_whole() && value.units() % size.units() == 0;
    if !good {
        let detail = format!("{value} is not positive integer multiple of {name}");
        errs.invalid(path, value.to_string(), &detail);
    }
}

fn requirements(resources: &Value, place: Place, claims: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let limits = amounts(resources.entries("limits"));
    let requests = amounts(resources.entries("requests"));
    let mut seen = SeenResources::default();
    for (name, value) in &limits {
        let at = path.child("limits").key(name);
        listed(name, value, place, &at, &mut seen, errs);
        huge_page_multiple(name, value, &at, errs);
    }
    let requests_path = path.child("requests");
    for (name, value) in &requests {
        let at = requests_path.key(name);
        listed(name, value, place, &at, &mut seen, errs);
        match limits.get(name) {
            Some(limit) if value != limit && !may_overcommit(name) => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errs.invalid(&requests_path, value.to_string(), &detail);
            }
            Some(limit) if value > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errs.invalid(&requests_path, value.to_string(), &detail);
            }
            None if !may_overcommit(name) => {
                errs.required(&path.child("limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
        huge_page_multiple(name, value, &at, errs);
    }
    seen.finish(path, errs);
    claim_names(resources, claims, &path.child("claims"), errs);
}

fn claim_names(resources: &Value, known: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (i, claim) in resources.items("claims").iter().enumerate() {
        let at = path.index(i);
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            errs.required(&at, "");
            continue;
        }
        if seen.contains(name) {
            errs.duplicate(&at, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                dns_label(request, &at.child("request"), errs);
                key = format!("{name}/{request}");
            }
            if seen.contains(&key) {
                errs.duplicate(&at, key.as_str());
            } else if request.is_empty() {
                let prefix = format!("{name}/");
                for _ in seen.iter().filter(|k| k.starts_with(&prefix)) {
                    errs.duplicate(&at, name);
                }
            }
            seen.insert(key);
        }
        if !known.contains(name) {
            unknown_claim(name, known, &at, errs);
        }
    }
}

fn unknown_claim(name: &str, known: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let mut error = proto_api::field::Error::not_found(path, name);
    error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
    if known.is_empty() {
        error.detail.push_str(" which is empty");
    } else {
        let list: Vec<&str> = known.iter().copied().collect();
        error.detail.push_str(&format!(": {}", list.join(", ")));
    }
    errs.push(error);
}

/// Returns what the containers of a pod need together: the sum of containers and sidecars, or the need of an
/// init container and the sidecars started before it, whichever is more. `key` is `requests` or `limits`.
pub fn aggregate<'a>(spec: &'a Value, key: &str) -> Amounts<'a> {
    let mut total = Amounts::new();
    for container in spec.items("containers") {
        sum(&mut total, amounts(container.sub("resources").entries(key)));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.items("initContainers") {
        let mut needed = amounts(container.sub("resources").entries(key));
        if container.text("restartPolicy") == "Always" {
            sum(&mut total, needed.clone());
            sum(&mut sidecars, needed);
            needed = sidecars.clone();
        } else {
            sum(&mut needed, sidecars.clone());
        }
        maximum(&mut peak, needed);
    }
    maximum(&mut total, peak);
    total
}

fn sum<'a>(total: &mut Amounts<'a>, more: Amounts<'a>) {
    for (name, value) in more {
        total.entry(name).and_modify(|t| t.add(&value)).or_insert(value);
    }
}

fn maximum<'a>(total: &mut Amounts<'a>, other: Amounts<'a>) {
    for (name, value) in other {
        let slot = total.entry(name).or_insert_with(|| value.clone());
        if *slot < value {
            *slot = value;
        }
    }
}

/// Validates `spec.resources`, the resources of the whole pod.
pub fn pod_level(spec: &Value, claims: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let Some(resources) = spec.at("resources") else { return };
    let at = path.child("resources");
    if spec.sub("os").text("name") == "windows" {
        errs.forbidden(&at, "may not be set for a windows pod");
        return;
    }
    if resources.has("claims") {
        errs.forbidden(&at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(resources, Place::Pod, claims, &at, errs);
    let requests = amounts(resources.entries("requests"));
    for (name, needed) in aggregate(spec, "requests") {
        if let Some(value) = requests.get(name).filter(|v| needed > **v) {
            let detail = format!("must be greater than or equal to aggregate container requests of {needed}");
            errs.invalid(&at.child("requests").key(name), value.to_string(), &detail);
        }
    }
    let limits = amounts(resources.entries("limits"));
    for (name, needed) in aggregate(spec, "limits") {
        if let Some(value) = limits.get(name).filter(|v| is_huge_page(name) && needed > **v) {
            let detail = format!("must be greater than or equal to aggregate container limits of {needed}");
            errs.invalid(&at.child("limits").key(name), value.to_string(), &detail);
        }
    }
    for (i, container) in spec.items("containers").iter().enumerate() {
        for (name, value) in amounts(container.sub("resources").entries("limits")) {
            if let Some(limit) = limits.get(name).filter(|l| value > **l) {
                let path = at.child("containers").index(i).key(name).child("limits");
                let detail = format!("must be less than or equal to pod limits of {limit}");
                errs.invalid(&path, value.to_string(), &detail);
            }
        }
    }
}
