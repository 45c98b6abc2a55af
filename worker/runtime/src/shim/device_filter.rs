//! Restricts a container's device access on cgroup version 2, where an eBPF program attached to the cgroup
//! decides (version 1 has control files for it, which `libcontainer` writes). Called by the launcher before
//! the container's first process enters the cgroup.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use serde_json::Value;

/// An allowing device rule of the OCI runtime specification; `None` matches any value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowRule {
    /// Device type: `BLOCK` or `CHARACTER`.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    /// Allowed kinds of access: a bit set of `MAKE`, `READ` and `WRITE`.
    access: i32,
}

/// Values of the fields of the kernel's `struct bpf_cgroup_dev_ctx`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// Returns the rules that every container gets, as in runc: make any device node, use the
/// devices in its own `/dev`.
fn defaults() -> Vec<AllowRule> {
    let any = |kind| AllowRule { kind: Some(kind), major: None, minor: None, access: MAKE };
    let device = |major, minor| AllowRule { kind: Some(CHARACTER), major: Some(major), minor, access: ALL };
    let mut rules = vec![any(CHARACTER), any(BLOCK)];
    // null, zero, full, random, urandom, tty, console, ptmx
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(device(major, Some(minor)));
    }
    rules.push(device(136, None)); // terminals
    rules
}

/// Lets the processes of the version 2 cgroup at `directory` use only the devices that `rules` (OCI runtime
/// specification, `linux.resources.devices`) and the defaults allow. Fails where the kernel cannot enforce
/// that.
pub(super) fn attach(directory: &Path, rules: &Value) -> io::Result<()> {
    let mut allowed = defaults();
    for rule in rules.as_array().into_iter().flatten() {
        match (rule["allow"].as_bool().unwrap_or(false), parse(rule)) {
            // A privileged container may use every device: no filter is needed.
            (true, AllowRule { kind: None, major: None, minor: None, access: ALL }) => return Ok(()),
            (true, one) => allowed.push(one),
            // Denying rules need no code: whatever no rule allows is denied.
            (false, _) => {}
        }
    }
    let program = load(&program(&allowed))?;
    attach_program(&File::open(directory)?, &program)
}

fn parse(rule: &Value) -> AllowRule {
    let number = |key: &str| rule[key].as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0);
    let access = rule["access"].as_str().unwrap_or("rwm");
    let bit = |letter: char, bit: i32| if access.contains(letter) { bit } else { 0 };
    AllowRule {
        kind: match rule["type"].as_str() {
            Some("b") => Some(BLOCK),
            Some("c" | "u") => Some(CHARACTER),
            _ => None,
        },
        major: number("major"),
        minor: number("minor"),
        access: bit('m', MAKE) | bit('r', READ) | bit('w', WRITE),
    }
}

/// Opcodes of eBPF (Linux, `Documentation/bpf/standardization/instruction-set.rst`).
mod opcode {
    pub const LOAD_WORD: u8 = 0x61;
    pub const AND_32: u8 = 0x54;
    pub const SHIFT_RIGHT_32: u8 = 0x74;
    pub const MOVE_32: u8 = 0xbc;
    pub const MOVE_VALUE: u8 = 0xb7;
    pub const JUMP_UNLESS_EQUAL: u8 = 0x55;
    pub const JUMP_IF_BITS: u8 = 0x45;
    pub const EXIT: u8 = 0x95;
}

/// eBPF registers: the result, the context passed by the kernel, and the values read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    u64::from_ne_bytes([code, from << 4 | to, o0, o1, v0, v1, v2, v3])
}

/// Builds the eBPF program, which returns 1 if a rule allows the access, else 0.
fn program(allowed: &[AllowRule]) -> Vec<u64> {
    let mut code = vec![
        instruction(opcode::LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(opcode::MOVE_32, ACCESS, KIND, 0, 0),
        instruction(opcode::AND_32, KIND, 0, 0, 0xffff),
        instruction(opcode::SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(opcode::LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(opcode::LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in allowed {
        let mut tests = Vec::new();
        for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
            tests.extend(wanted.map(|value| (opcode::JUMP_UNLESS_EQUAL, register, value)));
        }
        if rule.access != ALL {
            // The rule does not match if the access asks for a kind that the rule does not allow.
            tests.push((opcode::JUMP_IF_BITS, ACCESS, ALL & !rule.access));
        }
        let count = tests.len();
        for (done, (test, register, value)) in tests.into_iter().enumerate() {
            // Distance to the next rule: the remaining tests and the two instructions that allow the access.
            let over = i16::try_from(count - done + 1).unwrap_or(i16::MAX);
            code.push(instruction(test, register, 0, over, value));
        }
        code.push(instruction(opcode::MOVE_VALUE, RESULT, 0, 0, 1));
        code.push(instruction(opcode::EXIT, 0, 0, 0, 0));
    }
    code.push(instruction(opcode::MOVE_VALUE, RESULT, 0, 0, 0));
    code.push(instruction(opcode::EXIT, 0, 0, 0, 0));
    code
}

/// The first fields of the kernel's `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The first fields of the kernel's `union bpf_attr` for attaching a program.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const LOAD_COMMAND: libc::c_int = 5;
const ATTACH_COMMAND: libc::c_int = 8;
const PROGRAM_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Attach flag: the programs of the parent and child cgroups apply as well.
const ALLOW_MULTIPLE: u32 = 2;

#[allow(unsafe_code, reason = "the attributes and what they point to live until the call returns")]
fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: PROGRAM_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let descriptor = unsafe { bpf(LOAD_COMMAND, &attributes) }
        .map_err(|e| io::Error::new(e.kind(), format!("load the device program: {e}")))?;
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[allow(unsafe_code, reason = "the attributes live until the call returns")]
fn attach_program(cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    let descriptor = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attributes = AttachAttributes {
        target: descriptor(cgroup.as_raw_fd())?,
        program: descriptor(program.as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTIPLE,
    };
    unsafe { bpf(ATTACH_COMMAND, &attributes) }
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("attach the device program: {e}")))
}

/// Makes the system call `bpf`.
///
/// # Safety
///
/// `attributes` must have the layout of the command, and its pointers must be valid during the call.
#[allow(unsafe_code, reason = "libc has no wrapper")]
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match outcome {
        ..0 => Err(io::Error::last_os_error()),
        descriptor => i32::try_from(descriptor).map_err(io::Error::other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::process::Command;

    use nix::sys::stat::{Mode, SFlag, mknod};
    use serde_json::json;

    use super::*;

    /// Returns a new cgroup of version 2; `None` if this machine has none mounted.
    fn cgroup() -> Option<PathBuf> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: a cgroup needs root");
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(point) = mount.and_then(|line| line.split(' ').nth(4)) else {
            eprintln!("SKIPPED: this machine has no cgroups of version 2");
            return None;
        };
        let directory = Path::new(point).join(format!("ephor-device-test-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("make the cgroup");
        Some(directory)
    }

    #[test]
    fn processes_of_the_cgroup_reach_the_devices_that_are_allowed_and_no_other() {
        let Some(directory) = cgroup() else { return };
        let rules = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
        ]);
        attach(&directory, &rules).expect("attach");
        let nodes = tempfile::tempdir().expect("temporary directory");
        let disk = fs::metadata("/").expect("the root").dev();
        mknod(&nodes.path().join("disk"), SFlag::S_IFBLK, Mode::S_IRUSR, disk).expect("a node of the disk");
        let script = format!(
            "echo $$ >{procs}/cgroup.procs || exit 1; cd {nodes}
            (: </dev/null) && echo null; (: >/dev/zero) && echo zero
            (: <disk) 2>/dev/null && echo disk; (: </dev/kmsg) && echo kmsg
            (: >/dev/kmsg) 2>/dev/null && echo kmsg-write; mknod other b 1 2 && echo node; (: <other) 2>/dev/null && echo other
            true",
            procs = directory.display(),
            nodes = nodes.path().display(),
        );
        let output = Command::new("sh").arg("-c").arg(script).output().expect("run a shell");
        while fs::remove_dir(&directory).is_err() {
            std::thread::yield_now();
        }
        assert!(output.status.success(), "{output:?}");
        let reached: Vec<&str> = std::str::from_utf8(&output.stdout).expect("text").lines().collect();
        assert_eq!(reached, ["null", "zero", "kmsg", "node"], "{output:?}");
    }

    #[test]
    fn a_privileged_container_needs_no_program() {
        let rules = json!([{ "allow": true, "access": "rwm" }]);
        attach(Path::new("/nowhere"), &rules).expect("nothing to do");
    }
}
