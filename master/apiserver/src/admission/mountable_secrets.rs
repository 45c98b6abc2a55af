//! The ServiceAccount annotation `kubernetes.io/enforce-mountable-secrets`: pods of such an account may refer
//! only to the Secrets that the account lists. `mod.rs` checks ephemeral containers, `service_account.rs` new
//! pods.

use serde_json::Value;

use crate::json_fields::{self, JsonFields};

const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Returns why a new pod may not run as the account; `None` where it may.
pub fn check_pod(account: &Value, pod: &Value) -> Option<String> {
    if !is_enforced(account) {
        return None;
    }
    let spec = pod.sub("spec");
    let name = json_fields::name(account);
    let listed = |list: &str, secret: &str| account.items(list).iter().any(|s| s.text("name") == secret);
    let volumes = spec.items("volumes").iter().filter_map(|volume| volume.at("secret"));
    let by_volume = volumes.map(|secret| secret.text("secretName")).find(|secret| !listed("secrets", secret));
    if let Some(secret) = by_volume {
        return Some(not_referenced("volume with", secret, name));
    }
    let lists = [("initContainers", "init container"), ("containers", "container")];
    let by_container =
        lists.iter().find_map(|(list, what)| check_containers(account, spec.items(list), what));
    if by_container.is_some() {
        return by_container;
    }
    let pulls = spec.items("imagePullSecrets").iter().map(|secret| secret.text("name"));
    let foreign = pulls.enumerate().find(|(_, secret)| !listed("imagePullSecrets", secret));
    foreign.map(|(i, secret)| {
        format!(
            "imagePullSecrets[{i}].name=\"{secret}\" is not allowed because service account {name} does not reference that imagePullSecret"
        )
    })
}

/// Returns why a pod's ephemeral containers may not run as the account; `None` where they may.
pub fn check_ephemeral_containers(account: &Value, pod: &Value) -> Option<String> {
    if !is_enforced(account) {
        return None;
    }
    check_containers(account, pod.sub("spec").items("ephemeralContainers"), "ephemeral container")
}

/// Returns the annotation's value as parsed by Go's `strconv.ParseBool`; any text it does not accept counts
/// as false.
fn is_enforced(account: &Value) -> bool {
    let value = json_fields::annotations(account).text(ENFORCE);
    matches!(value, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn check_containers(account: &Value, containers: &[Value], what: &str) -> Option<String> {
    let is_listed = |secret: &str| account.items("secrets").iter().any(|s| s.text("name") == secret);
    let name = json_fields::name(account);
    for container in containers {
        let of = container.text("name");
        for variable in container.items("env") {
            let Some(key) = variable.sub("valueFrom").at("secretKeyRef") else { continue };
            if !is_listed(key.text("name")) {
                let place = format!("{what} {of} with envVar {} referencing", variable.text("name"));
                return Some(not_referenced(&place, key.text("name"), name));
            }
        }
        for source in container.items("envFrom").iter().filter_map(|source| source.at("secretRef")) {
            if !is_listed(source.text("name")) {
                let place = format!("{what} {of} with envFrom referencing");
                return Some(not_referenced(&place, source.text("name"), name));
            }
        }
    }
    None
}

fn not_referenced(place: &str, secret: &str, account: &str) -> String {
    format!(
        "{place} secret.secretName=\"{secret}\" is not allowed because service account {account} does not reference that secret"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_account_that_says_so_lends_itself_to_its_own_secrets_alone() {
        let account = |enforce: &str| {
            json!({
                "metadata": {"name": "a", "annotations": {ENFORCE: enforce}},
                "secrets": [{"name": "own"}], "imagePullSecrets": [{"name": "pull"}],
            })
        };
        let pods = |secret: &str, pull: &str| {
            [
                json!({"volumes": [{"name": "v", "secret": {"secretName": secret}}]}),
                json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": secret}}]}]}),
                json!({"initContainers": [{"name": "c", "env": [
                    {"name": "E", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}},
                ]}]}),
                json!({"imagePullSecrets": [{"name": pull}]}),
            ]
            .map(|spec| json!({"spec": spec}))
        };
        for pod in pods("own", "pull") {
            assert_eq!(check_pod(&account("true"), &pod), None, "{pod}");
        }
        for pod in pods("foreign", "foreign") {
            let why = check_pod(&account("true"), &pod).expect("refused");
            assert!(why.contains("foreign") && why.contains("service account a does not reference"), "{why}");
            assert_eq!(check_pod(&account("no"), &pod), None, "{pod}");
        }
        let debug = json!({"spec": {"ephemeralContainers": [
            {"name": "d", "envFrom": [{"secretRef": {"name": "foreign"}}]},
        ]}});
        assert!(check_ephemeral_containers(&account("true"), &debug).is_some());
    }
}
