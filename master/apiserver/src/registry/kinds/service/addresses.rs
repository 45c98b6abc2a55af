//! Validation of the addresses of a Service: cluster IPs, their families, and changes of both.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::{self, Report, legacy_ip, text_list};
use super::super::ip;
use super::super::json_fields::JsonFields;
use super::fields::is_reduced;
use super::{NONE, is_headless, type_of};

const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const CHANGED: &str = "may not change once set";

fn at(key: &str) -> Path {
    Path::new("spec").child(key)
}

/// Validates cluster IPs and families by themselves, without comparing them with the old object.
pub fn validate(service: &Value, old: Option<&Value>, errs: &mut ErrorList) {
    if type_of(service) == "ExternalName" {
        return;
    }
    let spec = service.sub("spec");
    let (one, list) = (spec.text("clusterIP"), spec.texts("clusterIPs"));
    let path = at("clusterIPs");
    match (one, list.first()) {
        ("", Some(_)) => {
            errs.invalid(&path, text_list(&list), "must be empty when `clusterIP` is not specified");
        }
        ("", None) => {}
        (_, None) => errs.required(&path, ""),
        (one, Some(first)) if one != *first => {
            errs.invalid(&path, text_list(&list), "first value must match `clusterIP`");
        }
        _ => {}
    }
    families(spec, errs);
    if !addresses(&list, old, errs) {
        return;
    }
    if list.len() > 1 && !ip::dual_stack(&list) {
        errs.invalid(&path, text_list(&list), "may specify no more than one IP for each IP family");
    }
    if is_headless(service) {
        return;
    }
    for (i, (address, family)) in list.iter().zip(spec.texts("ipFamilies")).enumerate() {
        let wrong = match family {
            "IPv4" => ip::is_v6(address),
            "IPv6" => !ip::is_v6(address),
            _ => false,
        };
        if wrong {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errs.invalid(&path.index(i), *address, &detail);
        }
    }
}

fn families(spec: &Value, errs: &mut ErrorList) {
    let path = at("ipFamilies");
    let list = spec.texts("ipFamilies");
    for (i, family) in list.iter().enumerate() {
        if !matches!(*family, "IPv4" | "IPv6") {
            errs.unsupported(&path.index(i), *family, &["IPv4", "IPv6"]);
        }
        if list[..i].contains(family) {
            errs.duplicate(&path.index(i), *family);
        }
    }
    check::opt_one_of(spec, "ipFamilyPolicy", POLICIES, &Path::new("spec"), errs);
}

/// Validates the list of cluster IPs; returns false when one of them is not an address.
fn addresses(list: &[&str], old: Option<&Value>, errs: &mut ErrorList) -> bool {
    let path = at("clusterIPs");
    let known = old.map(|o| o.sub("spec").texts("clusterIPs")).unwrap_or_default();
    let mut good = true;
    for (i, address) in list.iter().enumerate() {
        if i == 0 && *address == NONE {
            if list.len() > 1 {
                good = false;
                errs.invalid(&path, text_list(list), "'None' must be the first and only value");
            }
            continue;
        }
        let before = errs.len();
        legacy_ip(address, &path.index(i), &known, errs);
        good &= errs.len() == before;
    }
    if list.len() > 2 {
        errs.invalid(&path, text_list(list), "may only hold up to 2 values");
    }
    good
}

/// Reports the errors that upstream finds while it sets families, before it validates anything else.
pub fn family_setup(service: &Value, old: Option<&Value>, errs: &mut ErrorList) {
    if type_of(service) == "ExternalName" {
        return;
    }
    let spec = service.sub("spec");
    let policy = spec.text("ipFamilyPolicy");
    let policy_path = at("ipFamilyPolicy");
    if let Some(old) = old.filter(|_| policy != "SingleStack") {
        for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            if is_reduced(service, old, key) {
                let detail = format!("must be 'SingleStack' to release the secondary {what}");
                errs.invalid(&policy_path, policy, &detail);
            }
        }
    }
    if policy == "SingleStack" {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if spec.items(key).len() == 2 {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errs.invalid(&policy_path, policy, &detail);
            }
        }
    }
    let list = spec.texts("clusterIPs");
    let asked = spec.items("ipFamilies").len();
    for (i, _) in list.iter().enumerate().filter(|(i, a)| *i >= asked && ip::is_v6(a)) {
        errs.invalid(&at("clusterIPs").index(i), text_list(&list), "IPv6 is not configured on this cluster");
    }
    if !errs.is_empty() || (list == [NONE] && spec.entries("selector").is_empty()) {
        return;
    }
    if policy == "RequireDualStack" {
        errs.invalid(&policy_path, policy, "this cluster is not configured for dual-stack services");
    }
    for (i, family) in spec.texts("ipFamilies").iter().enumerate().filter(|(_, f)| **f == "IPv6") {
        errs.invalid(&at("ipFamilies").index(i), *family, "not configured on this cluster");
    }
}

/// Checks that addresses and families change only in the ways that are allowed.
pub fn validate_change(new: &Value, old: &Value, errs: &mut ErrorList) {
    if type_of(new) == "ExternalName" || type_of(old) == "ExternalName" {
        return;
    }
    let (headless, was_headless) = (is_headless(new), is_headless(old));
    if !(headless && was_headless) {
        change(new, old, "clusterIPs", errs);
    }
    if !headless && !was_headless {
        change(new, old, "ipFamilies", errs);
    }
}

/// Checks that the first value of a list stays; a second may be added, and removed when the policy becomes
/// single-stack.
fn change(new: &Value, old: &Value, key: &str, errs: &mut ErrorList) {
    let (spec, before) = (new.sub("spec"), old.sub("spec"));
    let (now, then) = (spec.texts(key), before.texts(key));
    let families = key == "ipFamilies";
    let path = at(key);
    if now.len() == then.len() {
        for (i, _) in now.iter().zip(&then).enumerate().filter(|(_, (a, b))| a != b) {
            // Upstream reports every changed family at index 0.
            errs.invalid(&path.index(if families { 0 } else { i }), text_list(&now), CHANGED);
        }
        return;
    }
    if now.len() < then.len() && spec.items("clusterIPs").is_empty() {
        let what = if families { "primary ipFamily" } else { "primary clusterIP" };
        errs.invalid(&path.index(0), text_list(&now), &format!("{what} can not be unset"));
    }
    if let (Some(a), Some(b)) = (now.first(), then.first())
        && a != b
    {
        errs.invalid(&path.index(0), text_list(&spec.texts("clusterIPs")), CHANGED);
    }
    if now.len() < then.len() && now.len() == 1 && spec.text("ipFamilyPolicy") != "SingleStack" {
        let what = if families { "ipFamily" } else { "clusterIP" };
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errs.invalid(&at("ipFamilyPolicy"), spec.text("ipFamilyPolicy"), &detail);
    }
}
