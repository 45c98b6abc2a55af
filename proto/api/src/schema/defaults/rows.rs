//! Constant defaults: type, field and JSON value. The type is a Go type by its table name, so a row applies
//! wherever the type occurs. Kubernetes has these defaults in code (`SetDefaults_*`); those in its markers
//! are in the schema table already.

/// Returns the rows of a type; empty if there are none.
pub(super) fn of(name: &str) -> &'static [(&'static str, &'static str)] {
    ROWS.iter().find(|(of, _)| *of == name).map(|(_, rows)| *rows).unwrap_or_default()
}

type Rows = &'static [(&'static str, &'static str)];

const MODE: Rows = &[("defaultMode", "420")];
const CONTAINER: Rows =
    &[("terminationMessagePath", "\"/dev/termination-log\""), ("terminationMessagePolicy", "\"File\"")];

static ROWS: &[(&str, Rows)] = &[
    // core
    ("core/v1.Container", CONTAINER),
    ("core/v1.EphemeralContainer", CONTAINER),
    (
        "core/v1.PodSpec",
        &[
            ("dnsPolicy", "\"ClusterFirst\""),
            ("restartPolicy", "\"Always\""),
            ("securityContext", "{}"),
            ("terminationGracePeriodSeconds", "30"),
            ("schedulerName", "\"default-scheduler\""),
        ],
    ),
    (
        "core/v1.Probe",
        &[
            ("timeoutSeconds", "1"),
            ("periodSeconds", "10"),
            ("successThreshold", "1"),
            ("failureThreshold", "3"),
        ],
    ),
    ("core/v1.HTTPGetAction", &[("path", "\"/\""), ("scheme", "\"HTTP\"")]),
    ("core/v1.SecretVolumeSource", MODE),
    ("core/v1.ConfigMapVolumeSource", MODE),
    ("core/v1.DownwardAPIVolumeSource", MODE),
    ("core/v1.ProjectedVolumeSource", MODE),
    ("core/v1.HostPathVolumeSource", &[("type", "\"\"")]),
    ("core/v1.ServiceAccountTokenProjection", &[("expirationSeconds", "3600")]),
    (
        "core/v1.AzureDiskVolumeSource",
        &[
            ("cachingMode", "\"ReadWrite\""),
            ("fsType", "\"ext4\""),
            ("readOnly", "false"),
            ("kind", "\"Shared\""),
        ],
    ),
    ("core/v1.ObjectFieldSelector", &[("apiVersion", "\"v1\"")]),
    ("core/v1.Secret", &[("type", "\"Opaque\"")]),
    ("core/v1.NamespaceStatus", &[("phase", "\"Active\"")]),
    ("core/v1.EndpointPort", &[("protocol", "\"TCP\"")]),
    ("core/v1.PersistentVolumeClaimSpec", &[("volumeMode", "\"Filesystem\"")]),
    ("core/v1.PersistentVolumeClaimStatus", &[("phase", "\"Pending\"")]),
    (
        "core/v1.PersistentVolumeSpec",
        &[("persistentVolumeReclaimPolicy", "\"Retain\""), ("volumeMode", "\"Filesystem\"")],
    ),
    ("core/v1.PersistentVolumeStatus", &[("phase", "\"Pending\"")]),
    // apps
    (
        "apps/v1.DeploymentSpec",
        &[("replicas", "1"), ("revisionHistoryLimit", "10"), ("progressDeadlineSeconds", "600")],
    ),
    ("apps/v1.ReplicaSetSpec", &[("replicas", "1")]),
    ("apps/v1.DaemonSetSpec", &[("revisionHistoryLimit", "10")]),
    (
        "apps/v1.StatefulSetSpec",
        &[
            ("podManagementPolicy", "\"OrderedReady\""),
            ("persistentVolumeClaimRetentionPolicy", "{}"),
            ("replicas", "1"),
            ("revisionHistoryLimit", "10"),
        ],
    ),
    (
        "apps/v1.StatefulSetPersistentVolumeClaimRetentionPolicy",
        &[("whenDeleted", "\"Retain\""), ("whenScaled", "\"Retain\"")],
    ),
    // discovery
    ("discovery/v1.EndpointPort", &[("name", "\"\""), ("protocol", "\"TCP\"")]),
];

#[cfg(test)]
mod tests {
    use super::ROWS;
    use crate::schema::Table;
    use serde_json::Value;

    #[test]
    fn every_row_names_a_field_of_the_table_and_parses() {
        let table = Table::get();
        for (name, rows) in ROWS {
            let of = table.at(table.find(name).unwrap_or_else(|| panic!("{name}")));
            for (field, json) in *rows {
                assert!(of.field(field).is_some(), "{name}.{field}");
                assert!(serde_json::from_str::<Value>(json).is_ok(), "{name}.{field}={json}");
            }
        }
    }
}
