//! Linux capabilities of a container: the default set, and the changes that a security context asks for.

use std::collections::BTreeSet;

use k8s_cri::v1;

use super::SpecError;

/// Capabilities that a container has by default, as with other container runtimes.
const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All capability names; the index is the kernel's number.
const ALL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Returns the capabilities of a container. Leaves out those that this process lacks itself (`bound`, one bit
/// per capability), because it cannot grant them.
pub(super) fn of(
    context: &v1::LinuxContainerSecurityContext,
    bound: u64,
) -> Result<BTreeSet<&'static str>, SpecError> {
    let every = || ALL.iter().copied();
    let mut set: BTreeSet<&'static str> = match context.privileged {
        true => every().collect(),
        false => DEFAULT.iter().copied().collect(),
    };
    if let (Some(changes), false) = (&context.capabilities, context.privileged) {
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        if changes.add_capabilities.iter().any(is_all) {
            set.extend(every());
        }
        if changes.drop_capabilities.iter().any(is_all) {
            set.clear();
        }
        for name in changes.add_capabilities.iter().filter(|n| !is_all(n)) {
            set.insert(canonical_name(name)?);
        }
        for name in changes.drop_capabilities.iter().filter(|n| !is_all(n)) {
            set.remove(canonical_name(name)?);
        }
    }
    let granted = every().enumerate().filter(|(number, _)| bound >> number & 1 == 1).map(|(_, name)| name);
    let granted: BTreeSet<&str> = granted.collect();
    set.retain(|name| granted.contains(name));
    Ok(set)
}

/// Returns the capabilities that this process can grant, one bit per capability.
pub(super) fn bound() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}

fn canonical_name(name: &str) -> Result<&'static str, SpecError> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    ALL.iter().copied().find(|c| *c == full).ok_or_else(|| SpecError::Capability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Result<BTreeSet<&'static str>, SpecError> {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let changes = v1::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        };
        of(&v1::LinuxContainerSecurityContext { capabilities: Some(changes), ..Default::default() }, u64::MAX)
    }

    #[test]
    fn names_work_with_and_without_prefix() {
        let set = set(&["NET_ADMIN"], &["cap_chown"]).expect("known names");
        assert!(set.contains("CAP_NET_ADMIN") && !set.contains("CAP_CHOWN"));
    }

    #[test]
    fn all_is_dropped_before_single_ones_are_added() {
        assert_eq!(
            set(&["NET_BIND_SERVICE"], &["ALL"]).expect("known"),
            BTreeSet::from(["CAP_NET_BIND_SERVICE"])
        );
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert!(set(&["FLY"], &[]).is_err());
    }

    #[test]
    fn what_this_process_lacks_is_not_given() {
        let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let set = of(&context, !(1 << 24)).expect("privileged");
        assert!(set.contains("CAP_SYS_ADMIN") && !set.contains("CAP_SYS_RESOURCE"));
    }
}
