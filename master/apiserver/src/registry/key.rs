//! Where objects lie: `/registry/GROUP/RESOURCE/NAMESPACE/NAME`, without the namespace for cluster-scoped
//! kinds; the core group is `core`. Everything that reads or writes the store makes its keys here.

use proto_api::kinds::Kind;

/// The prefix of all objects of a kind, or of those in one namespace.
pub fn prefix(kind: &Kind, namespace: &str) -> String {
    let group = kind.storage_group();
    if kind.namespaced && !namespace.is_empty() {
        format!("/registry/{group}/{}/{namespace}/", kind.resource)
    } else {
        format!("/registry/{group}/{}/", kind.resource)
    }
}

/// The key of one object.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    prefix(kind, namespace) + name
}

/// The key of a core object whose kind is known by name, such as `namespaces` or `nodes`.
pub fn core(resource: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        format!("/registry/core/{resource}/{name}")
    } else {
        format!("/registry/core/{resource}/{namespace}/{name}")
    }
}
