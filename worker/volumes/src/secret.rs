//! The `secret` volume: the keys of a Secret as files in memory (tmpfs), never on disk.

use k8s_openapi::api::core::v1::SecretVolumeSource;

use crate::manager::Context;
use crate::payload::{mode_bits, project, secret_data};
use crate::{Error, atomic_writer::Payload};

/// kubelet's directory name for this volume type.
pub const PLUGIN: &str = "kubernetes.io~secret";

/// Builds the files of the volume.
pub async fn payload(context: &Context<'_>, source: &SecretVolumeSource) -> Result<Payload, Error> {
    let optional = source.optional.unwrap_or(false);
    let name = source.secret_name.clone().unwrap_or_default();
    let Some(object) = context.source.secret(context.namespace, &name).await? else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Error::ObjectNotFound { kind: "secret", name });
    };
    let mode = source.default_mode.map_or(0o644, mode_bits);
    project("secret", &secret_data(&object), source.items.as_deref(), mode, optional)
}
