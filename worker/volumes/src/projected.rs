//! The `projected` volume: ConfigMaps, Secrets, downward API and ServiceAccount tokens in one directory.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ProjectedVolumeSource, SecretProjection, ServiceAccountTokenProjection,
};

use crate::atomic_writer::{FileProjection, Payload};
use crate::manager::Context;
use crate::object_source::TokenRequest;
use crate::payload::{config_map_data, mode_bits, project, secret_data};
use crate::{Error, downward_api};

/// kubelet's directory name for this volume type.
pub const PLUGIN: &str = "kubernetes.io~projected";

/// Kubernetes' default lifetime of a projected token.
const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;

/// Collects the files of all sources; the file of a later source wins if paths collide.
pub async fn payload(context: &Context<'_>, volume: &ProjectedVolumeSource) -> Result<Payload, Error> {
    let mode = volume.default_mode.map_or(0o644, mode_bits);
    let mut payload = Payload::new();
    for source in volume.sources.iter().flatten() {
        if let Some(projection) = &source.config_map {
            payload.extend(config_map(context, projection, mode).await?);
        } else if let Some(projection) = &source.secret {
            payload.extend(secret(context, projection, mode).await?);
        } else if let Some(projection) = &source.downward_api {
            let items = projection.items.as_deref().unwrap_or_default();
            payload.extend(downward_api::payload(&context.fields, items, mode)?);
        } else if let Some(projection) = &source.service_account_token {
            payload.insert(projection.path.clone(), token(context, projection, mode).await?);
        } else {
            return Err(Error::Invalid("unsupported source of a projected volume".to_owned()));
        }
    }
    Ok(payload)
}

async fn config_map(
    context: &Context<'_>,
    source: &ConfigMapProjection,
    mode: u32,
) -> Result<Payload, Error> {
    let optional = source.optional.unwrap_or(false);
    match context.source.config_map(context.namespace, &source.name).await? {
        Some(object) => project("config", &config_map_data(&object), source.items.as_deref(), mode, optional),
        None if optional => Ok(Payload::new()),
        None => Err(Error::ObjectNotFound { kind: "configmap", name: source.name.clone() }),
    }
}

async fn secret(context: &Context<'_>, source: &SecretProjection, mode: u32) -> Result<Payload, Error> {
    let optional = source.optional.unwrap_or(false);
    match context.source.secret(context.namespace, &source.name).await? {
        Some(object) => project("secret", &secret_data(&object), source.items.as_deref(), mode, optional),
        None if optional => Ok(Payload::new()),
        None => Err(Error::ObjectNotFound { kind: "secret", name: source.name.clone() }),
    }
}

/// Creates a token file: 0600 with fsGroup (which adds group access), 0600 owned by the common user of all
/// containers if there is one, else with the default mode.
async fn token(
    context: &Context<'_>,
    source: &ServiceAccountTokenProjection,
    default_mode: u32,
) -> Result<FileProjection, Error> {
    let meta = &context.fields.pod.metadata;
    let spec = context.fields.pod.spec.as_ref();
    let request = TokenRequest {
        namespace: context.namespace.to_owned(),
        service_account: spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_else(|| "default".to_owned()),
        audience: source.audience.clone().unwrap_or_default(),
        expiration_seconds: source.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION_SECONDS),
        pod_name: meta.name.clone().unwrap_or_default(),
        pod_uid: meta.uid.clone().unwrap_or_default(),
    };
    let token = context.source.service_account_token(&request).await?;
    let (mode, owner) = match (context.fs_group, common_user(context)) {
        (Some(_), _) => (0o600, None),
        (None, Some(user)) => (0o600, Some(user)),
        (None, None) => (default_mode, None),
    };
    Ok(FileProjection { data: token.into_bytes(), mode, owner })
}

/// Returns the user that every container of the pod runs as; `None` if they differ or the specification does
/// not say.
fn common_user(context: &Context<'_>) -> Option<u32> {
    let spec = context.fields.pod.spec.as_ref()?;
    let pod_user = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
