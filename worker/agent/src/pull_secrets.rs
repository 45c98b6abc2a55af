//! imagePullSecrets: registry credentials from Secrets of type `kubernetes.io/dockerconfigjson`.

use std::collections::BTreeMap;

use base64::Engine as _;
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use worker_volumes::ObjectSource;

use crate::pod;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Credentials>,
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// Returns the credentials to try for an image, in the order of the pod's secrets, and the names of the
/// secrets that cannot be read.
pub async fn for_image(pod: &Pod, image: &str, objects: &dyn ObjectSource) -> (Vec<AuthConfig>, Vec<String>) {
    let mut found = Vec::new();
    let mut unreadable = Vec::new();
    for reference in pod::spec(pod).image_pull_secrets.iter().flatten() {
        match objects.secret(pod::namespace(pod), &reference.name).await {
            Ok(Some(secret)) => {
                let data = secret.data.as_ref();
                let config = data.and_then(|d| d.get(".dockerconfigjson"));
                found.extend(config.map(|bytes| matching(&bytes.0, image)).unwrap_or_default());
            }
            Ok(None) | Err(_) => unreadable.push(reference.name.clone()),
        }
    }
    (found, unreadable)
}

fn matching(config: &[u8], image: &str) -> Vec<AuthConfig> {
    let Ok(config) = serde_json::from_slice::<DockerConfig>(config) else { return Vec::new() };
    let registry = registry_of(image);
    let fits = |server: &str| {
        let server = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = server.split('/').next().unwrap_or_default();
        host == registry || (registry == "docker.io" && host == "index.docker.io")
    };
    config.auths.into_iter().filter(|(server, _)| fits(server)).map(|(server, c)| auth(server, c)).collect()
}

fn auth(server: String, credentials: Credentials) -> AuthConfig {
    let Credentials { mut username, mut password, auth } = credentials;
    if username.is_empty()
        && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(&auth)
        && let Some((user, secret)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        username = user.to_owned();
        password = secret.to_owned();
    }
    AuthConfig { username, password, server_address: server, ..Default::default() }
}

/// Returns the registry host of an image reference; `docker.io` if it names none.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_chosen_by_registry() {
        let config = br#"{"auths": {"https://reg.example:5000/v1/": {"auth": "dXNlcjpwYXNz"}, "other": {}}}"#;
        let found = matching(config, "reg.example:5000/team/app:1");
        assert_eq!(
            (found.len(), found[0].username.as_str(), found[0].password.as_str()),
            (1, "user", "pass")
        );
        assert!(matching(config, "nginx").is_empty());
    }
}
