//! The `configMap` volume: the keys of a ConfigMap as files on the pod's disk.

use k8s_openapi::api::core::v1::ConfigMapVolumeSource;

use crate::manager::Context;
use crate::payload::{config_map_data, mode_bits, project};
use crate::{Error, atomic_writer::Payload};

/// kubelet's directory name for this volume type.
pub const PLUGIN: &str = "kubernetes.io~configmap";

/// Builds the files of the volume.
pub async fn payload(context: &Context<'_>, source: &ConfigMapVolumeSource) -> Result<Payload, Error> {
    let optional = source.optional.unwrap_or(false);
    let Some(object) = context.source.config_map(context.namespace, &source.name).await? else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Error::ObjectNotFound { kind: "configmap", name: source.name.clone() });
    };
    let mode = source.default_mode.map_or(0o644, mode_bits);
    project("config", &config_map_data(&object), source.items.as_deref(), mode, optional)
}
