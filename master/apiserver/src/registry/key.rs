//! Keys of objects in the store: `/registry/GROUP/RESOURCE/NAMESPACE/NAME`, without the namespace for
//! cluster-scoped kinds; the core group is `core`. Every reader and writer of the store builds its keys here.

use proto_api::kinds::Kind;

/// Returns the prefix of all objects of a kind, or of those in one namespace; an empty namespace means all.
pub fn prefix(kind: &Kind, namespace: &str) -> String {
    let group = kind.storage_group();
    if kind.namespaced && !namespace.is_empty() {
        format!("/registry/{group}/{}/{namespace}/", kind.resource)
    } else {
        format!("/registry/{group}/{}/", kind.resource)
    }
}

/// Returns the key of one object.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    prefix(kind, namespace) + name
}

/// Returns the key of an object of a core resource, such as `namespaces` or `nodes`.
pub fn core(resource: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        format!("/registry/core/{resource}/{name}")
    } else {
        format!("/registry/core/{resource}/{namespace}/{name}")
    }
}
