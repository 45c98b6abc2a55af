//! Computes a container's environment from Services, ConfigMaps, Secrets, literal values with `$(VAR)`
//! references and the downward API, in kubelet's order of precedence.

pub mod expand;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource};
use worker_volumes::ObjectSource;
use worker_volumes::pod_fields::PodFields;

use crate::pod;
use crate::services::Services;

/// A failure for which the container waits with CreateContainerConfigError.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Computes the environment, in order of first definition; a later definition of a name replaces the value of
/// an earlier one.
pub async fn compute(
    fields: PodFields<'_>,
    container: &Container,
    objects: &dyn ObjectSource,
    services: &Services,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = pod::namespace(fields.pod);
    let links = pod::spec(fields.pod).enable_service_links.unwrap_or(true);
    let service_env = services.environment(namespace, links).await.map_err(ConfigError)?;
    let mut result = Environment::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            let object = objects.config_map(namespace, &reference.name).await.map_err(text)?;
            if object.is_none() && !optional {
                return Err(ConfigError(format!("configmap \"{}\" not found", reference.name)));
            }
            for (key, value) in object.iter().flat_map(|o| o.data.iter().flatten()) {
                result.set(format!("{prefix}{key}"), value.clone());
            }
        } else if let Some(reference) = &source.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            let object = objects.secret(namespace, &reference.name).await.map_err(text)?;
            if object.is_none() && !optional {
                return Err(ConfigError(format!("secret \"{}\" not found", reference.name)));
            }
            for (key, value) in object.iter().flat_map(|o| o.data.iter().flatten()) {
                result.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(fields, container, variable, objects, &result, &service_env).await? {
            result.set(variable.name.clone(), value);
        }
    }
    for (name, value) in service_env {
        if !result.values.contains_key(&name) {
            result.set(name, value);
        }
    }
    Ok(result.into_pairs())
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_pairs(mut self) -> Vec<(String, String)> {
        let take = |name: String| {
            let value = self.values.remove(&name).unwrap_or_default();
            (name, value)
        };
        self.order.into_iter().map(take).collect()
    }
}

fn text(error: worker_volumes::Error) -> ConfigError {
    ConfigError(error.to_string())
}

/// Returns the value of a variable; `None` if an optional reference has no target.
async fn value_of(
    fields: PodFields<'_>,
    container: &Container,
    variable: &EnvVar,
    objects: &dyn ObjectSource,
    so_far: &Environment,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    if let Some(value) = variable.value.as_deref().filter(|v| !v.is_empty()) {
        let lookup = |name: &str| so_far.values.get(name).or_else(|| services.get(name)).cloned();
        return Ok(Some(expand::expand(value, lookup)));
    }
    let Some(source) = &variable.value_from else { return Ok(Some(String::new())) };
    from_source(fields, container, source, objects).await
}

async fn from_source(
    fields: PodFields<'_>,
    container: &Container,
    source: &EnvVarSource,
    objects: &dyn ObjectSource,
) -> Result<Option<String>, ConfigError> {
    let namespace = pod::namespace(fields.pod);
    if let Some(selector) = &source.field_ref {
        return fields.field(selector).map(Some).map_err(text);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields.resource(selector, &container.name).map(Some).map_err(text);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional.unwrap_or(false);
        let object = objects.config_map(namespace, &selector.name).await.map_err(text)?;
        let Some(object) = object else {
            return missing(optional, format!("configmap \"{}\" not found", selector.name));
        };
        return match object.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing(
                optional,
                format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name),
            ),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional.unwrap_or(false);
        let object = objects.secret(namespace, &selector.name).await.map_err(text)?;
        let Some(object) = object else {
            return missing(optional, format!("secret \"{}\" not found", selector.name));
        };
        return match object.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing(
                optional,
                format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name),
            ),
        };
    }
    Ok(Some(String::new()))
}

fn missing(optional: bool, message: String) -> Result<Option<String>, ConfigError> {
    if optional { Ok(None) } else { Err(ConfigError(message)) }
}
