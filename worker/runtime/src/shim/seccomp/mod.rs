//! A container's seccomp filter: compiles the default profile (`profile`), or one of the node's files
//! (`localhost`), to the kernel's classic BPF, for the machine's architecture and its 32-bit sibling.
//!
//! The launcher compiles the filter. The container's first process, and each process of an exec, installs it
//! right before its capabilities are dropped (`executor`), as in runc.

pub(crate) mod localhost;
mod profile;

use std::io;
use std::str::FromStr;

use libc::sock_filter;

/// Offsets of fields in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Offset of the lower half of the first argument, on a little-endian machine.
const ARGUMENT_0: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// Result for calls that the profile does not know (ENOSYS), so that a C library falls back to an older call.
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// A compiled profile.
#[derive(Clone)]
pub(crate) struct Filter {
    pub instructions: Vec<sock_filter>,
    /// Flags of seccomp(2).
    pub flags: libc::c_ulong,
}

/// Function that returns a system call's number by its name; `None` if the architecture lacks the call.
type Numbers = fn(&str) -> Option<u32>;

fn number<T: FromStr>(name: &str, id: fn(T) -> i32) -> Option<u32> {
    u32::try_from(id(name.parse().ok()?)).ok()
}

/// Architectures whose programs this machine runs, by the kernel's `AUDIT_ARCH` value.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [(u32, Numbers); 2] = [
    (0xc000_003e, |name| number(name, |s: syscalls::x86_64::Sysno| s.id())),
    (0x4000_0003, |name| number(name, |s: syscalls::x86::Sysno| s.id())),
];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [(u32, Numbers); 2] = [
    (0xc000_00b7, |name| number(name, |s: syscalls::aarch64::Sysno| s.id())),
    (0x4000_0028, |name| number(name, |s: syscalls::arm::Sysno| s.id())),
];

/// Compiles the default profile for a container with these capabilities (`CAP_...`).
pub(crate) fn default_filter(capabilities: &[String]) -> Filter {
    let mut filter = vec![statement(LOAD, ARCHITECTURE)];
    for (architecture, numbers) in ARCHITECTURES {
        let rules = rules(numbers, capabilities);
        // A conditional jump reaches at most 255 instructions, so that an unconditional one skips the rules.
        filter.push(jump(JUMP_EQUAL, architecture, 1, 0));
        filter.push(statement(JUMP, u32::try_from(rules.len()).unwrap_or(u32::MAX)));
        filter.extend(rules);
    }
    filter.push(statement(RETURN, KILL));
    Filter { instructions: filter, flags: 0 }
}

/// Compiles the part of the filter for one architecture; it ends with a return instruction.
fn rules(numbers: Numbers, capabilities: &[String]) -> Vec<sock_filter> {
    let held = |name: &str| capabilities.iter().any(|c| c == name);
    let mut allowed: Vec<u32> = profile::ALLOWED.split_whitespace().filter_map(numbers).collect();
    for (_, names) in profile::BY_CAPABILITY.iter().filter(|(capability, _)| held(capability)) {
        allowed.extend(names.split_whitespace().filter_map(numbers));
    }
    allowed.sort_unstable();
    allowed.dedup();
    let every = profile::BY_CAPABILITY.iter().map(|(_, names)| *names).chain([profile::ALLOWED]);
    let newest = every.flat_map(str::split_whitespace).filter_map(numbers).max().unwrap_or(0);

    let mut rules = vec![statement(LOAD, NUMBER)];
    for call in allowed {
        rules.extend([jump(JUMP_EQUAL, call, 0, 1), statement(RETURN, ALLOW)]);
    }
    let mut conditional = |name: &str, body: Vec<sock_filter>| {
        if let Some(call) = numbers(name) {
            rules.push(jump(JUMP_EQUAL, call, 0, u8::try_from(body.len()).unwrap_or(u8::MAX)));
            rules.extend(body);
        }
    };
    let mut personality = vec![statement(LOAD, ARGUMENT_0)];
    for value in profile::PERSONALITIES {
        personality.extend([jump(JUMP_EQUAL, *value, 0, 1), statement(RETURN, ALLOW)]);
    }
    personality.push(statement(RETURN, REFUSE));
    conditional("personality", personality);
    let unless = |test: sock_filter| {
        vec![statement(LOAD, ARGUMENT_0), test, statement(RETURN, REFUSE), statement(RETURN, ALLOW)]
    };
    conditional("socket", unless(jump(JUMP_EQUAL, profile::AF_VSOCK, 0, 1)));
    if !held("CAP_SYS_ADMIN") {
        conditional("clone", unless(jump(JUMP_BITS, profile::CLONE_NAMESPACES, 0, 1)));
        // A filter cannot read the flags of clone3, which are in memory: with ENOSYS C
        // libraries fall back to clone.
        conditional("clone3", vec![statement(RETURN, UNKNOWN)]);
    }
    rules.extend([jump(JUMP_GREATER, newest, 0, 1), statement(RETURN, UNKNOWN), statement(RETURN, REFUSE)]);
    rules
}

fn statement(code: u16, value: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k: value }
}

fn jump(code: u16, value: u32, matching: u8, other: u8) -> sock_filter {
    sock_filter { code, jt: matching, jf: other, k: value }
}

/// Installs the filter irrevocably for this process and its descendants. Needs
/// CAP_SYS_ADMIN, or `no_new_privs`.
#[allow(unsafe_code, reason = "the kernel copies the filter, which lives until the call returns")]
pub(crate) fn install(filter: &mut Filter) -> io::Result<()> {
    let Filter { instructions, flags } = filter;
    let length =
        u16::try_from(instructions.len()).map_err(|_| io::Error::other("the seccomp filter is too long"))?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    let outcome = unsafe { libc::syscall(libc::SYS_seccomp, operation, *flags, &raw const program) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
