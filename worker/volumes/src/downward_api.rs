//! The `downwardAPI` volume: the pod's own fields as files in memory.

use k8s_openapi::api::core::v1::DownwardAPIVolumeFile;

use crate::Error;
use crate::atomic_writer::{FileProjection, Payload};
use crate::payload::mode_bits;
use crate::pod_fields::PodFields;

/// kubelet's directory name for this volume type.
pub const PLUGIN: &str = "kubernetes.io~downward-api";

/// Builds the files of the volume, or of a projected volume's source.
pub fn payload(
    fields: &PodFields<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Payload, Error> {
    let mut payload = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => fields.field(selector)?,
            (None, Some(selector)) => fields.resource(selector, "")?,
            (None, None) => continue,
        };
        let mode = item.mode.map_or(default_mode, mode_bits);
        payload.insert(item.path.clone(), FileProjection { data: text.into_bytes(), mode, owner: None });
    }
    Ok(payload)
}
