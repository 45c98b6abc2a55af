//! The strategy of Services: defaults, fields that depend on the type, validation, and the addresses and
//! ports that are allocated in the transaction that writes the object.

mod addresses;
mod allocate;
mod fields;
mod ports;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;

use proto_api::field::{ErrorList, Path};
use proto_api::status::Status;
use serde_json::{Value, json};

use super::super::strategy::{
    AllocationContext, Allocations, NameRule, ObjectChange, Strategy, metadata_fields,
};
use super::ip;
use super::json_fields::{self, JsonFields, ensure, set};

/// The strategy of Services.
#[derive(Debug)]
pub struct ServiceStrategy;

/// Value of `clusterIP` that makes a Service headless.
const NONE: &str = "None";

/// Returns whether a Service is headless: it has no address of its own.
fn is_headless(service: &Value) -> bool {
    service.sub("spec").texts("clusterIPs") == [NONE]
}

fn type_of(service: &Value) -> &str {
    service.sub("spec").text("type")
}

/// Returns whether a Service can be reached from outside the cluster.
fn is_external(service: &Value) -> bool {
    match type_of(service) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !service.sub("spec").items("externalIPs").is_empty(),
        _ => false,
    }
}

/// Returns whether a Service needs a health check port, where load balancers ask for its local endpoints.
fn needs_health_port(service: &Value) -> bool {
    type_of(service) == "LoadBalancer" && service.sub("spec").text("externalTrafficPolicy") == "Local"
}

impl Strategy for ServiceStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        set(obj, "status", json!({"loadBalancer": {}}));
        fields::normalize(obj, None);
        fields::init_families(obj, None);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        fields::keep_allocated(new, old);
        fields::normalize(new, Some(old));
        fields::init_families(new, Some(old));
        fields::drop_type_dependent(new, old);
        if type_of(new) != "LoadBalancer"
            && let Some(status) = ensure(new, "status")
        {
            set(status, "loadBalancer", json!({}));
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate::create(obj, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate::update(new, old, errs);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate::status(new, old, errs);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Dns1035Label
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let mut out = metadata_fields(obj);
        for key in ["clusterIP", "type"] {
            out.insert(format!("spec.{key}"), obj.sub("spec").text(key).to_owned());
        }
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"]
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(obj)
    }

    fn allocations(
        &self,
        ctx: &AllocationContext<'_>,
        change: ObjectChange<'_>,
    ) -> Result<Allocations, Status> {
        allocate::allocate(ctx, change)
    }
}

fn warnings(service: &Value) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    let (spec, path) = (service.sub("spec"), Path::new("spec"));
    let mut out = Vec::new();
    if json_fields::annotations(service).get(HINTS).is_some() {
        out.push(format!("annotation {HINTS} is deprecated, please use {MODE} instead"));
    }
    if !matches!(spec.text("clusterIP"), "" | NONE) {
        for (i, address) in spec.texts("clusterIPs").iter().enumerate() {
            out.extend(ip::warnings(&path.child("clusterIPs").index(i), address));
        }
    }
    if type_of(service) == "ClusterIP" && spec.text("clusterIP") == NONE {
        for (used, field) in [
            (!spec.text("loadBalancerIP").is_empty(), "loadBalancerIP"),
            (!spec.items("externalIPs").is_empty(), "externalIPs"),
            (spec.text("sessionAffinity") != "None", "SessionAffinity"),
        ] {
            if used {
                out.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    }
    for (i, address) in spec.texts("externalIPs").iter().enumerate() {
        out.extend(ip::warnings(&path.child("externalIPs").index(i), address));
    }
    if !spec.text("loadBalancerIP").is_empty() {
        out.extend(ip::warnings(&path.child("loadBalancerIP"), spec.text("loadBalancerIP")));
    }
    for (i, range) in spec.texts("loadBalancerSourceRanges").iter().enumerate() {
        out.extend(ip::cidr_warnings(&path.child("loadBalancerSourceRanges").index(i), range));
    }
    let external_name = type_of(service) == "ExternalName";
    if external_name && !spec.items("externalIPs").is_empty() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name && !spec.text("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.text("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}
