//! Checks the security context fields that protect the node: the runtime enforces a field or refuses the
//! container, because running without the requested protection is worse than not running.

use std::path::Path;

use k8s_cri::v1;
use k8s_cri::v1::NamespaceMode;
use k8s_cri::v1::security_profile::ProfileType;

use super::SpecError;
use crate::shim::plan::SeccompProfile;
use crate::shim::seccomp::localhost;

/// Optional security modules of this machine's kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modules {
    pub app_armor: bool,
    pub se_linux: bool,
}

impl Modules {
    pub fn detect() -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Self {
            app_armor: enabled.is_ok_and(|text| text.starts_with('Y')),
            se_linux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

/// Returns the container's seccomp profile: the default one unless the container is privileged or asks for
/// none, or for a file on the node, which is read here. Blocks.
pub(crate) fn seccomp(context: &v1::LinuxContainerSecurityContext) -> Result<SeccompProfile, SpecError> {
    if context.privileged {
        return Ok(SeccompProfile::Unconfined);
    }
    let Some(profile) = &context.seccomp else { return Ok(SeccompProfile::RuntimeDefault) };
    match profile.profile_type() {
        ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            Err(SpecError::Unsupported("seccomp config invalid, localhost ref must be set"))
        }
        ProfileType::Localhost => {
            Ok(SeccompProfile::Localhost(Box::new(localhost::load(Path::new(&profile.localhost_ref))?)))
        }
    }
}

/// Fails if the context asks for a protection that cannot be enforced. Ignores options that have no meaning
/// without their kernel module, as containerd does: SELinux options without SELinux, the default AppArmor
/// profile without AppArmor.
pub(crate) fn check(context: &v1::LinuxContainerSecurityContext, modules: Modules) -> Result<(), SpecError> {
    check_namespaces(context.namespace_options.as_ref())?;
    if context.privileged {
        // As in containerd, a privileged container gets no AppArmor profile.
        return check_se_linux(context.selinux_options.as_ref(), modules);
    }
    match context.apparmor.as_ref().map(v1::SecurityProfile::profile_type) {
        Some(ProfileType::Localhost) => {
            return Err(SpecError::Unsupported(match modules.app_armor {
                true => "AppArmor profiles of type Localhost are not supported",
                false => "apparmor is not supported",
            }));
        }
        Some(ProfileType::RuntimeDefault) if modules.app_armor => {
            return Err(SpecError::Unsupported("AppArmor profiles of type RuntimeDefault are not supported"));
        }
        _ => {}
    }
    check_se_linux(context.selinux_options.as_ref(), modules)
}

/// Does the same as [`check`] for the security context of a pod's sandbox.
pub(crate) fn check_sandbox(
    context: &v1::LinuxSandboxSecurityContext,
    modules: Modules,
) -> Result<(), SpecError> {
    check_namespaces(context.namespace_options.as_ref())?;
    check_se_linux(context.selinux_options.as_ref(), modules)
}

fn check_namespaces(options: Option<&v1::NamespaceOption>) -> Result<(), SpecError> {
    let user = options.and_then(|o| o.userns_options.as_ref());
    match user.is_some_and(|u| u.mode() != NamespaceMode::Node) {
        true => Err(SpecError::Unsupported("user namespaces are not supported")),
        false => Ok(()),
    }
}

fn check_se_linux(options: Option<&v1::SeLinuxOption>, modules: Modules) -> Result<(), SpecError> {
    let asked = options.is_some_and(|o| *o != v1::SeLinuxOption::default());
    match asked && modules.se_linux {
        true => Err(SpecError::Unsupported("SELinux options are not supported")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Modules = Modules { app_armor: false, se_linux: false };
    const BOTH: Modules = Modules { app_armor: true, se_linux: true };

    fn profile(kind: ProfileType) -> Option<v1::SecurityProfile> {
        Some(v1::SecurityProfile { profile_type: kind.into(), ..Default::default() })
    }

    #[test]
    fn the_default_filter_holds_unless_a_container_asks_for_none_or_is_privileged() {
        let of = |privileged, seccomp| {
            super::seccomp(&v1::LinuxContainerSecurityContext { privileged, seccomp, ..Default::default() })
        };
        assert_eq!(of(false, None).expect("unset"), SeccompProfile::RuntimeDefault);
        let default = of(false, profile(ProfileType::RuntimeDefault)).expect("default");
        assert_eq!(default, SeccompProfile::RuntimeDefault);
        let none = of(false, profile(ProfileType::Unconfined)).expect("none");
        assert_eq!(none, SeccompProfile::Unconfined);
        assert_eq!(of(true, None).expect("privileged"), SeccompProfile::Unconfined);
        let refused = of(false, profile(ProfileType::Localhost)).expect_err("no file").to_string();
        assert!(refused.contains("localhost ref must be set"), "{refused}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"defaultAction": "SCMP_ACT_LOG"}"#).expect("write");
        let mut local = profile(ProfileType::Localhost);
        local.iter_mut().for_each(|p| p.localhost_ref = file.path().to_string_lossy().into_owned());
        assert!(matches!(of(false, local.clone()), Ok(SeccompProfile::Localhost(_))));
        assert_eq!(of(true, local).expect("privileged"), SeccompProfile::Unconfined);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let context = |apparmor| v1::LinuxContainerSecurityContext { apparmor, ..Default::default() };
        for (kind, without, with) in [
            (ProfileType::RuntimeDefault, true, false),
            (ProfileType::Unconfined, true, true),
            (ProfileType::Localhost, false, false),
        ] {
            assert_eq!(check(&context(profile(kind)), NONE).is_ok(), without, "{kind:?}");
            assert_eq!(check(&context(profile(kind)), BOTH).is_ok(), with, "{kind:?}");
        }
        let selinux = v1::LinuxContainerSecurityContext {
            selinux_options: Some(v1::SeLinuxOption { level: "s0:c1".into(), ..Default::default() }),
            ..Default::default()
        };
        assert!(check(&selinux, NONE).is_ok() && check(&selinux, BOTH).is_err());
        let user = v1::UserNamespace { mode: NamespaceMode::Pod.into(), ..Default::default() };
        let options = v1::NamespaceOption { userns_options: Some(user), ..Default::default() };
        let sandbox = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        };
        let container =
            v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        assert!(check(&container, NONE).is_err() && check_sandbox(&sandbox, NONE).is_err());
    }
}
