//! Tests valid and invalid experiment files, with the exact errors, and every file of chaos/experiments.

use std::path::Path;

use super::*;

/// A valid file without its schedule.
pub(super) const FINE: &str = "\
apiVersion: ephor.dev/v1alpha1
kind: Experiment
metadata: {name: test}
spec:
  cluster: {masters: 3, workers: 1}
  steadyState:
  - write: {within: 500ms}
  - availability: {atLeast: 99%}
  workload:
    clients: 4
    rate: 100
    keys: 16
    mix: {create: 1, get: 2, watch: 1}
  invariants: [acknowledged-writes-kept, linearizable, watches-exact, heals]
  recoverWithin: 20s
  abortIf: {unavailableFor: 30s, lostWrites: 1}
  duration: 60s
";

/// Parses the valid file with this schedule, a YAML list that begins in the first column.
pub(super) fn with_schedule(schedule: &str) -> Result<Experiment, Error> {
    Experiment::parse(&format!("{FINE}  schedule:\n{}", indented(schedule)))
}

fn indented(schedule: &str) -> String {
    schedule.lines().map(|line| format!("  {line}\n")).collect()
}

/// Returns the error for a schedule of this one entry.
pub(super) fn entry_error(entry: &str) -> String {
    with_schedule(&format!("- {entry}")).expect_err(entry).to_string()
}

/// Returns the error when `part` of the valid file is replaced by `by`.
pub(super) fn error(part: &str, by: &str) -> String {
    let text = format!("{FINE}  schedule: []\n");
    assert!(text.contains(part), "{part}");
    Experiment::parse(&text.replace(part, by)).expect_err(by).to_string()
}

#[test]
fn a_fine_file_says_what_it_says() {
    let experiment = with_schedule(
        "- {at: 5s, for: 10s, fault: {kill: {target: leader}}}\n- at: 20s\n  fault: {kill: {target: m1}}",
    )
    .unwrap();
    assert_eq!(experiment.metadata.name, "test");
    let spec = &experiment.spec;
    assert_eq!((spec.cluster.masters, spec.cluster.workers), (3, 1));
    assert_eq!(spec.steady_state[0], Probe::Write(Within { within: Duration::from_millis(500) }));
    assert_eq!(
        spec.steady_state[1],
        Probe::Availability(AtLeast { at_least: Percent::from_hundredths(9900).unwrap() })
    );
    assert_eq!((spec.workload.clients, spec.workload.rate, spec.workload.keys), (4, 100, 16));
    assert_eq!(spec.workload.mix, Mix { create: 1, get: 2, watch: 1, ..Mix::default() });
    assert_eq!(spec.recover_within, Duration::from_secs(20));
    assert_eq!(spec.abort_if.unavailable_for, Some(Duration::from_secs(30)));
    assert_eq!(spec.abort_if.lost_writes, Some(1));
    assert_eq!(spec.schedule[0].end(spec.duration), Duration::from_secs(15));
    assert_eq!(spec.schedule[1].end(spec.duration), spec.duration, "without for until the end");
}

#[test]
fn what_may_be_left_out_has_a_default() {
    let text = format!("{FINE}  schedule: []\n")
        .replace("  recoverWithin: 20s\n", "")
        .replace("  abortIf: {unavailableFor: 30s, lostWrites: 1}\n", "")
        .replace(", workers: 1", "");
    let spec = Experiment::parse(&text).unwrap().spec;
    assert_eq!(spec.recover_within, Duration::from_secs(10));
    assert_eq!(spec.abort_if, AbortIf::default());
    assert_eq!(spec.cluster.workers, 0);
}

#[test]
fn an_experiment_comes_back_from_its_yaml() {
    let experiment = with_schedule(
        "- {at: 1500ms, for: 1m 30ms, fault: {cut: {from: [m1, m2], to: m3, oneWay: true}}}\n\
         - {at: 2s, fault: {disk: {target: leader, kind: slow-fsync, delay: 200ms}}}\n\
         - {at: 3s, fault: {member: {transferLeader: follower}}}",
    );
    // 1.5 s and 60.03 s end after the experiment does.
    assert!(experiment.unwrap_err().to_string().starts_with("spec.schedule[0].for: "));
    let experiment = with_schedule(
        "- {at: 1500ms, for: 20s 30ms, fault: {cut: {from: [m1, m2], to: m3, oneWay: true}}}\n\
         - {at: 2s, fault: {disk: {target: leader, kind: slow-fsync, delay: 200ms}}}\n\
         - {at: 3s, fault: {member: {transferLeader: follower}}}",
    )
    .unwrap();
    let yaml = experiment.to_yaml().unwrap();
    assert!(!yaml.contains('!'), "no tags: {yaml}");
    assert_eq!(Experiment::parse(&yaml).unwrap(), experiment, "{yaml}");
}

#[test]
fn the_shape_of_the_file_is_strict() {
    for (part, by, expected) in [
        (
            "ephor.dev/v1alpha1",
            "ephor.dev/v2",
            "apiVersion: unknown apiVersion `ephor.dev/v2`; hint: expected `ephor.dev/v1alpha1`",
        ),
        ("kind: Experiment", "kind: Pod", "kind: unknown kind `Pod`; hint: expected `Experiment`"),
        (
            "keys: 16",
            "keys: 16\n    key: 1",
            "spec.workload.key: unknown field `key`; hint: expected one of `clients`, `rate`, `keys`, `mix`",
        ),
        (
            "keys: 16",
            "keys: 16\n    keys: 17",
            "spec.workload: duplicate key `keys`; hint: keep one of the two",
        ),
        ("  duration: 60s\n", "", "spec: missing field `duration`; hint: add `duration` here"),
        ("duration: 60s", "duration: 60", "spec.duration: 60 has no unit; hint: write 60s or 60ms"),
        (
            "duration: 60s",
            "duration: soon",
            "spec.duration: `soon` is no duration: expected number at 0; hint: write it like 500ms, 10s \
             or 1m 30s",
        ),
        (
            "duration: 60s",
            "duration:",
            "spec.duration: invalid type: null; hint: expected a duration like 500ms, 10s or 1m 30s",
        ),
        (
            "clients: 4",
            "clients: -4",
            "spec.workload.clients: invalid value: integer `-4`; hint: expected u32",
        ),
        (
            "99%",
            "lots",
            "spec.steadyState[1].availability.atLeast: `lots` is no percentage; hint: write 0% to 100%, \
             with two decimals at most, like 99.9%",
        ),
        (
            "- write:",
            "- wirte:",
            "spec.steadyState[0]: unknown probe `wirte`; hint: expected one of `write`, `read`, \
             `availability`",
        ),
        (
            "linearizable",
            "linear",
            "spec.invariants[1]: unknown invariant `linear`; hint: expected one of \
             `acknowledged-writes-kept`, `no-phantoms`, `linearizable`, `watches-exact`, \
             `one-leader-per-term`, `replicas-identical`, `minority-silent`, `heals`",
        ),
        (
            "schedule: []",
            "schedule: [",
            "spec.schedule: did not find expected node content at line 19 column 1, while parsing a flow \
             node; hint: see chaos/experiments for files that work",
        ),
    ] {
        assert_eq!(error(part, by), expected);
    }
}

#[test]
fn a_fault_is_known_and_has_its_fields() {
    for (entry, expected) in [
        (
            "{at: 1s, fault: {cutt: {shape: ring}}}",
            "spec.schedule[0].fault: unknown fault `cutt`; hint: expected one of `cut`, `slow`, `lose`, \
             `hold`, `kill`, `pause`, `powerloss`, `disk`, `busy`, `clock`, `member`, `worker`",
        ),
        (
            "{at: 1s, fault: {cut: {from: lead, to: all}}}",
            "spec.schedule[0].fault.cut.from: `lead` is no target; hint: take leader, follower, any, all, \
             minority, majority, a node like m1 or w1, or a list of nodes",
        ),
        (
            "{at: 1s, fault: {cut: {from: [m1, m01], to: all}}}",
            "spec.schedule[0].fault.cut.from[1]: `m01` is no name of a node; hint: masters are m1, m2, \
             ..., workers w1, w2, ...",
        ),
        (
            "{at: 1s, fault: {cut: {shape: star}}}",
            "spec.schedule[0].fault.cut.shape: unknown shape `star`; hint: expected one of `ring`, \
             `minority`, `majority`, `leader-alone`",
        ),
        (
            "{at: 1s, fault: {cut: {to: all}}}",
            "spec.schedule[0].fault.cut: it is not clear what is cut; hint: write either shape alone, or \
             both from and to",
        ),
        (
            "{at: 1s, fault: {disk: {target: m1, kind: full}}}",
            "spec.schedule[0].fault.disk.kind: unknown kind `full`; hint: expected one of `eio`, \
             `enospc`, `bitflip`, `truncate`, `slow-fsync`, `iops`",
        ),
        (
            "{at: 1s, fault: {member: {join: m4}}}",
            "spec.schedule[0].fault.member: unknown change of members `join`; hint: expected one of \
             `add`, `remove`, `replace`, `transferLeader`",
        ),
        (
            "{at: 1s, fault: {kill: {target: m1, hard: true}}}",
            "spec.schedule[0].fault.kill.hard: unknown field `hard`; hint: expected `target`",
        ),
        (
            "{at: 1s, fault: {kill: {target: m1}, pause: {target: m2}}}",
            "spec.schedule[0].fault: invalid value: map; hint: expected map with a single key",
        ),
        ("{fault: {kill: {target: m1}}}", "spec.schedule[0]: missing field `at`; hint: add `at` here"),
    ] {
        assert_eq!(entry_error(entry), expected);
    }
}

#[test]
fn what_an_error_quotes_stays_on_one_line() {
    for (part, by) in
        [("keys: 16", "\"a\\nb\\e[31m\": 1"), ("99%", "\"9\\n9\\e[31m\""), ("name: test", "name: \"a\\nb\"")]
    {
        let error = error(part, by);
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(error.contains("hint: "), "{error}");
    }
}

#[test]
fn the_names_of_invariants_are_those_of_the_file() {
    assert!(Invariant::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    for invariant in Invariant::ALL {
        assert_eq!(serde_json::to_value(invariant).unwrap(), invariant.name());
    }
}

#[test]
fn every_experiment_of_the_house_is_fine() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
    let mut names = Vec::new();
    for file in std::fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let experiment =
            Experiment::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(experiment.metadata.name, stem, "named after its file");
        assert!(text.starts_with('#'), "{stem} says first what it proves");
        assert!(!experiment.spec.schedule.is_empty(), "{stem} does something");
        names.push(stem);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "asymmetric-partition",
            "busy-disk",
            "busy-kill",
            "busy-processor",
            "disk-full",
            "leader-kill",
            "node-loss",
            "pauses",
            "rolling-restart",
            "slow-disk",
            "slow-links",
            "split-brain"
        ]
    );
}
