//! Seccomp profiles of type Localhost: files on the node in the form of the OCI runtime specification
//! (`linux.seccomp`), which containerd reads too. Compiles them as runc and libseccomp do: a rule without
//! conditions beats those with conditions for the same call, unknown calls and flags that need no action here
//! are ignored, and calls newer than the profile get ENOSYS where the default action refuses.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use libc::sock_filter;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator,
};
use serde_json::Value;

use super::{
    ARCHITECTURE, ARCHITECTURES, Filter, JUMP, JUMP_EQUAL, JUMP_GREATER, KILL, LOAD, NUMBER, Numbers, RETURN,
    UNKNOWN, jump, statement,
};

/// Maximum size of a profile in bytes.
const SIZE_MAX: u64 = 1 << 20;
/// Maximum number of instructions that the kernel accepts (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;
/// Numbers from this one on belong to the x32 interface of x86-64, which no profile can allow here.
const X32: u32 = 0x4000_0000;
/// Error number if a profile names none (EPERM).
const DEFAULT_ERROR: u32 = libc::EPERM as u32;

const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot load seccomp profile \"{path}\": {source}")]
    Read { path: String, source: std::io::Error },
    #[error("decoding seccomp profile failed: {0}")]
    Decode(String),
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
}

/// Reads a profile and checks that it can be enforced.
pub(crate) fn load(path: &Path) -> Result<LinuxSeccomp, Error> {
    let failed = |source| Error::Read { path: path.to_string_lossy().into_owned(), source };
    // Opened only once it is known to be a file: opening a pipe would block.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(SIZE_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(failed(std::io::Error::other("larger than 1 MiB")));
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<LinuxSeccomp, Error> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| Error::Decode(e.to_string()))?;
    // Docker's own form has rules for some capabilities or kernels only: without the condition a rule would
    // allow more than its author meant.
    for rule in value["syscalls"].as_array().into_iter().flatten() {
        for key in ["includes", "excludes"] {
            if rule[key].as_object().is_some_and(|conditions| !conditions.is_empty()) {
                return Err(Error::Unsupported(format!("\"{key}\" of a rule")));
            }
        }
    }
    let profile: LinuxSeccomp = serde_json::from_value(value).map_err(|e| Error::Decode(e.to_string()))?;
    filter(&profile).map(|_| profile)
}

/// Compiles a profile.
pub(crate) fn filter(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    let wanted = architectures(profile)?;
    let mut instructions = vec![statement(LOAD, ARCHITECTURE)];
    for (architecture, numbers) in ARCHITECTURES {
        if !wanted.contains(&architecture) {
            continue;
        }
        let rules = rules(profile, numbers)?;
        // A conditional jump reaches at most 255 instructions, so that an unconditional one skips the rules.
        instructions.push(jump(JUMP_EQUAL, architecture, 1, 0));
        instructions.push(statement(JUMP, u32::try_from(rules.len()).unwrap_or(u32::MAX)));
        instructions.extend(rules);
    }
    instructions.push(statement(RETURN, KILL));
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(Error::Unsupported(format!("a filter of {} instructions", instructions.len())));
    }
    Ok(Filter { instructions, flags: flags(profile)? })
}

/// Returns the kernel's numbers of the profile's architectures; this machine's alone if it names none. Those
/// of other machines are ignored.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<u32>, Error> {
    let native = ARCHITECTURES[0].0;
    let Some(listed) = profile.architectures().as_ref().filter(|listed| !listed.is_empty()) else {
        return Ok(vec![native]);
    };
    // Programs for i386 reach most calls also through `socketcall` and `ipc`, whose arguments a filter cannot
    // read: they would get around a profile that only names what is forbidden.
    if allows(profile.default_action()) && listed.contains(&Arch::ScmpArchX86) && cfg!(target_arch = "x86_64")
    {
        let text = "SCMP_ARCH_X86 with a default action that allows";
        return Err(Error::Unsupported(text.to_owned()));
    }
    let number = |arch: &Arch| match arch {
        Arch::ScmpArchNative => native,
        other => *other as u32,
    };
    Ok(listed.iter().map(number).collect())
}

fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong, Error> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // The process has a single thread when the filter is installed, and no notifications.
            Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    Ok(flags)
}

fn allows(action: Action) -> bool {
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

/// Returns the filter's result for an action.
fn result(action: Action, error: Option<u32>) -> Result<u32, Error> {
    let data = error.unwrap_or(DEFAULT_ERROR) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActNotify => return Err(Error::Unsupported("SCMP_ACT_NOTIFY".to_owned())),
    })
}

/// What the profile says of one system call.
#[derive(Default)]
struct Call {
    /// Result of the rule without conditions; `None` if there is none.
    plain: Option<u32>,
    /// Conditions and result of each other rule.
    conditional: Vec<(Vec<LinuxSeccompArg>, u32)>,
}

/// Compiles the part of the filter for one architecture; it ends with a return instruction.
fn rules(profile: &LinuxSeccomp, numbers: Numbers) -> Result<Vec<sock_filter>, Error> {
    let default = result(profile.default_action(), profile.default_errno_ret())?;
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let result = result(rule.action(), rule.errno_ret())?;
        for number in rule.names().iter().filter_map(|name| numbers(name)) {
            let call = calls.entry(number).or_default();
            let conditions = rule.args().as_deref().unwrap_or_default();
            let mut indexes: Vec<usize> = conditions.iter().map(LinuxSeccompArg::index).collect();
            indexes.sort_unstable();
            indexes.dedup();
            match conditions {
                [] => call.plain = call.plain.or(Some(result)),
                // As in runc: several conditions on one argument are alternatives.
                several if indexes.len() < several.len() => {
                    call.conditional.extend(several.iter().map(|condition| (vec![*condition], result)));
                }
                all => call.conditional.push((all.to_vec(), result)),
            }
        }
    }
    let mut code =
        vec![statement(LOAD, NUMBER), jump(JUMP_GREATER_EQUAL, X32, 0, 1), statement(RETURN, UNKNOWN)];
    for (number, call) in &calls {
        let body = match call.plain {
            Some(result) => vec![statement(RETURN, result)],
            None => conditional(&call.conditional, default)?,
        };
        code.push(jump(JUMP_EQUAL, *number, 1, 0));
        code.push(statement(JUMP, u32::try_from(body.len()).unwrap_or(u32::MAX)));
        code.extend(body);
    }
    if let Some(newest) = calls.keys().next_back().filter(|_| !allows(profile.default_action())) {
        code.extend([jump(JUMP_GREATER, *newest, 0, 1), statement(RETURN, UNKNOWN)]);
    }
    code.push(statement(RETURN, default));
    Ok(code)
}

/// Compiles the rules with conditions of one call: the first whose conditions all hold decides.
fn conditional(rules: &[(Vec<LinuxSeccompArg>, u32)], default: u32) -> Result<Vec<sock_filter>, Error> {
    let mut code = Vec::new();
    for (conditions, result) in rules {
        let mut tests = Vec::new();
        for condition in conditions {
            tests.extend(test(condition)?);
        }
        let end = tests.len() + 1;
        for (at, one) in tests.into_iter().enumerate() {
            code.push(one.place(at, end)?);
        }
        code.push(statement(RETURN, *result));
    }
    code.push(statement(RETURN, default));
    Ok(code)
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// This many instructions further within the condition, which ends there if it holds.
    Skip(u8),
    /// The next rule: the condition does not hold.
    NextRule,
}

/// An instruction of a condition, whose targets depend on its place in the rule.
enum Step {
    Plain(sock_filter),
    Jump { code: u16, value: u32, matching: To, other: To },
}

impl Step {
    /// Returns the instruction at this place of a rule that ends after `end` instructions.
    fn place(self, at: usize, end: usize) -> Result<sock_filter, Error> {
        let (code, value, matching, other) = match self {
            Self::Plain(instruction) => return Ok(instruction),
            Self::Jump { code, value, matching, other } => (code, value, matching, other),
        };
        let offset = |to: To| match to {
            To::Skip(count) => Ok(count),
            To::NextRule => u8::try_from(end - at - 1)
                .map_err(|_| Error::Unsupported("a rule with so many conditions".to_owned())),
        };
        Ok(jump(code, value, offset(matching)?, offset(other)?))
    }
}

/// Compiles one condition on a 64-bit argument, which a filter reads in two halves.
fn test(condition: &LinuxSeccompArg) -> Result<Vec<Step>, Error> {
    if condition.index() > 5 {
        return Err(Error::Unsupported(format!("a condition on argument {}", condition.index())));
    }
    let argument = u32::try_from(condition.index()).unwrap_or(0);
    // `struct seccomp_data` on a little-endian machine: the lower half comes first.
    let (low, high) = (16 + 8 * argument, 20 + 8 * argument);
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let load = |offset| Step::Plain(statement(LOAD, offset));
    let jump_to = |code, value, matching, other| Step::Jump { code, value, matching, other };
    let (value_high, value_low) = halves(condition.value());
    let (next, fails) = (To::Skip(0), To::NextRule);
    // Of the four steps of a comparison the second decides where the upper halves differ.
    let ordered = |above: To, below: To, low_code: u16, low_holds: To, low_fails: To| {
        vec![
            load(high),
            jump_to(JUMP_GREATER, value_high, above, next),
            jump_to(JUMP_EQUAL, value_high, next, below),
            load(low),
            jump_to(low_code, value_low, low_holds, low_fails),
        ]
    };
    Ok(match condition.op() {
        Operator::ScmpCmpEq => vec![
            load(high),
            jump_to(JUMP_EQUAL, value_high, next, fails),
            load(low),
            jump_to(JUMP_EQUAL, value_low, next, fails),
        ],
        Operator::ScmpCmpNe => vec![
            load(high),
            jump_to(JUMP_EQUAL, value_high, next, To::Skip(2)),
            load(low),
            jump_to(JUMP_EQUAL, value_low, fails, next),
        ],
        Operator::ScmpCmpGt => ordered(To::Skip(3), fails, JUMP_GREATER, next, fails),
        Operator::ScmpCmpGe => ordered(To::Skip(3), fails, JUMP_GREATER_EQUAL, next, fails),
        Operator::ScmpCmpLt => ordered(fails, To::Skip(2), JUMP_GREATER_EQUAL, fails, next),
        Operator::ScmpCmpLe => ordered(fails, To::Skip(2), JUMP_GREATER, fails, next),
        Operator::ScmpCmpMaskedEq => {
            // `value` is the mask and `valueTwo` the masked argument's value.
            let (wanted_high, wanted_low) = halves(condition.value_two().unwrap_or(0));
            vec![
                load(high),
                Step::Plain(statement(AND, value_high)),
                jump_to(JUMP_EQUAL, wanted_high, next, fails),
                load(low),
                Step::Plain(statement(AND, value_low)),
                jump_to(JUMP_EQUAL, wanted_low, next, fails),
            ]
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{Arguments, answer};
    use super::*;

    const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;

    fn compiled(profile: Value) -> Filter {
        let bytes = serde_json::to_vec(&profile).expect("JSON");
        filter(&parse(&bytes).expect("a profile")).expect("compiles")
    }

    /// Returns the result for a call by name with these arguments, on this machine's architecture.
    fn ask(filter: &Filter, name: &str, arguments: Arguments) -> u32 {
        let (architecture, numbers) = ARCHITECTURES[0];
        answer(&filter.instructions, architecture, numbers(name).expect("a call"), arguments)
    }

    #[test]
    fn a_profile_allows_what_it_names_and_answers_the_rest_with_its_default() {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "syscalls": [
                {"names": ["read", "no_such_call", "statx"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"}]}));
        assert_eq!(ask(&filter, "read", [0; 6]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(&filter, "chmod", [0; 6]), ERRNO | 5);
        assert_eq!(ask(&filter, "mount", [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(ask(&filter, "write", [0; 6]), ERRNO | 38);
        let native = ARCHITECTURES[0].0;
        assert_eq!(answer(&filter.instructions, native, 100_000, [0; 6]), UNKNOWN, "a newer call");
        assert_eq!(answer(&filter.instructions, native, X32, [0; 6]), UNKNOWN, "x32");
        assert_eq!(answer(&filter.instructions, ARCHITECTURES[1].0, 3, [0; 6]), KILL, "not asked for");
    }

    #[test]
    fn what_is_only_forbidden_stays_forbidden_by_every_way() {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}));
        assert_eq!(ask(&filter, "chmod", [0; 6]), ERRNO | DEFAULT_ERROR);
        assert_eq!(ask(&filter, "read", [0; 6]), libc::SECCOMP_RET_ALLOW);
        let native = ARCHITECTURES[0].0;
        assert_eq!(answer(&filter.instructions, native, X32 + 90, [0; 6]), UNKNOWN, "chmod of x32");
    }

    #[test]
    fn conditions_compare_all_64_bits() {
        const BIG: u64 = 0x1_0000_0005;
        let holds = |op: &str, value: u64, two: u64, argument: u64| {
            let filter = compiled(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 1, "value": value, "valueTwo": two, "op": op}]}]}));
            ask(&filter, "personality", [0, argument, 0, 0, 0, 0]) == libc::SECCOMP_RET_ALLOW
        };
        let samples = [0, 4, 5, 6, BIG - 1, BIG, BIG + 1, 5 << 32, u64::MAX];
        for value in [0, 5, BIG, u64::MAX] {
            for argument in samples {
                let cases = [
                    ("SCMP_CMP_EQ", argument == value),
                    ("SCMP_CMP_NE", argument != value),
                    ("SCMP_CMP_LT", argument < value),
                    ("SCMP_CMP_LE", argument <= value),
                    ("SCMP_CMP_GT", argument > value),
                    ("SCMP_CMP_GE", argument >= value),
                ];
                for (op, expected) in cases {
                    assert_eq!(holds(op, value, 0, argument), expected, "{argument:#x} {op} {value:#x}");
                }
                let masked = argument & value == 4;
                assert_eq!(
                    holds("SCMP_CMP_MASKED_EQ", value, 4, argument),
                    masked,
                    "{argument:#x} & {value:#x}"
                );
            }
        }
    }

    #[test]
    fn several_conditions_hold_together_and_those_on_one_argument_are_alternatives() {
        let condition = |index: u32, value: u32| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [condition(0, 1), condition(1, 2)]},
                {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": [condition(0, 7)]},
                {"names": ["prctl"], "action": "SCMP_ACT_ALLOW", "args": [condition(0, 1), condition(0, 2)]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [condition(0, 1)]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW"}]}));
        let socket = |a, b| ask(&filter, "socket", [a, b, 0, 0, 0, 0]);
        assert_eq!((socket(1, 2), socket(7, 0)), (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG));
        assert_eq!((socket(1, 3), socket(2, 2)), (ERRNO | 1, ERRNO | 1));
        let prctl = |a| ask(&filter, "prctl", [a, 0, 0, 0, 0, 0]);
        assert_eq!(
            (prctl(1), prctl(2), prctl(3)),
            (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ALLOW, ERRNO | 1)
        );
        assert_eq!(ask(&filter, "clone", [9, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let refused = |profile: Value| {
            parse(&serde_json::to_vec(&profile).expect("JSON")).expect_err("refused").to_string()
        };
        let rule = |more: Value| {
            let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
            rule.as_object_mut().expect("a rule").extend(more.as_object().expect("fields").clone());
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
        };
        let texts = [
            (rule(json!({"includes": {"caps": ["CAP_SYS_ADMIN"]}})), "\"includes\" of a rule"),
            (rule(json!({"action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY"),
            (rule(json!({"args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]})), "argument 6"),
            (rule(json!({"action": "SCMP_ACT_HOPE"})), "decoding seccomp profile failed"),
        ];
        for (profile, expected) in texts {
            let text = refused(profile);
            assert!(text.contains(expected), "{text}");
        }
        assert!(compiled(rule(json!({"includes": {}}))).flags == 0);
        let missing = load(Path::new("/no/such.json")).expect_err("no file").to_string();
        assert!(missing.starts_with("cannot load seccomp profile \"/no/such.json\""), "{missing}");
        assert!(load(Path::new("/dev/zero")).is_err(), "it never ends");
    }
}
