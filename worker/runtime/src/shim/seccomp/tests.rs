//! Tests the filter with an interpreter of the few BPF instructions that it uses.

use super::*;

/// Arguments of a system call.
pub(super) type Arguments = [u64; 6];

/// Returns the filter's result for a call with these arguments on one of [`ARCHITECTURES`].
pub(super) fn answer(filter: &[sock_filter], architecture: u32, call: u32, arguments: Arguments) -> u32 {
    const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = filter[at];
        at += 1;
        let holds = match code {
            LOAD => {
                accumulator = match k {
                    NUMBER => call,
                    ARCHITECTURE => architecture,
                    offset @ 16..64 => {
                        let argument = arguments[(offset as usize - 16) / 8];
                        if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                    }
                    other => panic!("a load from {other}"),
                };
                continue;
            }
            JUMP => {
                at += k as usize;
                continue;
            }
            AND => {
                accumulator &= k;
                continue;
            }
            RETURN => return k,
            JUMP_EQUAL => accumulator == k,
            JUMP_GREATER => accumulator > k,
            JUMP_GREATER_EQUAL => accumulator >= k,
            JUMP_BITS => accumulator & k != 0,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

fn ask(capabilities: &[&str], name: &str, argument: u32) -> Vec<u32> {
    let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    let filter = default_filter(&capabilities).instructions;
    let arguments = [argument.into(), 0, 0, 0, 0, 0];
    assert!(filter.len() < 4096, "the kernel's limit");
    ARCHITECTURES
        .iter()
        .filter_map(|(arch, numbers)| Some(answer(&filter, *arch, numbers(name)?, arguments)))
        .collect()
}

#[test]
fn ordinary_calls_are_allowed_and_dangerous_ones_are_not() {
    for name in ["read", "openat", "execve", "mknodat", "exit_group", "ptrace", "statx", "futex"] {
        assert_eq!(ask(&[], name, 0), [ALLOW; 2], "{name}");
    }
    for name in ["mount", "unshare", "setns", "keyctl", "add_key", "bpf", "kexec_load", "reboot", "swapon"] {
        assert_eq!(ask(&[], name, 0), [REFUSE; 2], "{name}");
    }
    for name in ["io_uring_setup", "userfaultfd", "open_by_handle_at", "init_module", "chroot"] {
        assert_eq!(ask(&[], name, 0), [REFUSE; 2], "{name}");
    }
}

#[test]
fn a_capability_brings_its_calls() {
    assert_eq!(ask(&["CAP_SYS_ADMIN"], "mount", 0), [ALLOW; 2]);
    assert_eq!(ask(&["CAP_SYS_CHROOT"], "chroot", 0), [ALLOW; 2]);
    assert_eq!(ask(&["CAP_SYS_CHROOT"], "mount", 0), [REFUSE; 2]);
    assert_eq!(ask(&["CAP_SYS_ADMIN"], "clone3", 0), [ALLOW; 2]);
}

#[test]
fn arguments_decide_where_a_call_is_both() {
    assert_eq!(ask(&[], "clone", 17), [ALLOW; 2], "fork");
    for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
        assert_eq!(ask(&[], "clone", namespace.cast_unsigned()), [REFUSE; 2]);
    }
    assert_eq!(ask(&[], "clone3", 0), [UNKNOWN; 2]);
    assert_eq!(ask(&[], "socket", 2), [ALLOW; 2]);
    assert_eq!(ask(&[], "socket", profile::AF_VSOCK), [REFUSE; 2]);
    assert_eq!(ask(&[], "personality", 8), [ALLOW; 2]);
    assert_eq!(ask(&[], "personality", 0x0040_0000), [REFUSE; 2], "no address randomization");
}

#[test]
fn calls_of_a_newer_kernel_and_of_another_architecture_are_unknown() {
    let filter = default_filter(&[]).instructions;
    assert_eq!(answer(&filter, ARCHITECTURES[0].0, 100_000, [0; 6]), UNKNOWN);
    assert_eq!(answer(&filter, 0x1234, 0, [0; 6]), KILL);
}
