//! Probes and lifecycle handlers. Called by `containers.rs`.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, Report, non_negative_field, port_or_name};
use super::super::json_fields::JsonFields;

/// Validates the liveness, readiness and startup probe of a container, in this order.
pub fn probes(container: &Value, path: &Path, errs: &mut ErrorList) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.at(key) else { continue };
        let at = path.child(key);
        validate(probe, &at, errs);
        if key != "readinessProbe" && probe.int("successThreshold") != 1 {
            errs.invalid(&at.child("successThreshold"), probe.int("successThreshold"), "must be 1");
        }
        if let Some(seconds) =
            probe.opt_int("terminationGracePeriodSeconds").filter(|_| key == "readinessProbe")
        {
            let detail = "must not be set for readinessProbes";
            errs.invalid(&at.child("terminationGracePeriodSeconds"), seconds, detail);
        }
    }
}

fn validate(probe: &Value, path: &Path, errs: &mut ErrorList) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, path, errs);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        non_negative_field(probe, key, path, errs);
    }
    if let Some(seconds) = probe.opt_int("terminationGracePeriodSeconds").filter(|s| *s <= 0) {
        errs.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// Checks that an action has exactly one handler, and one of those in `known`.
fn handler(action: &Value, known: &[&str], grace: Option<i64>, path: &Path, errs: &mut ErrorList) {
    let mut count = 0;
    for kind in known {
        let Some(value) = action.at(kind) else { continue };
        let at = path.child(kind);
        if count > 0 {
            errs.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        count += 1;
        match *kind {
            "exec" if value.items("command").is_empty() => errs.required(&at.child("command"), ""),
            "httpGet" => http_get(value, &at, errs),
            "tcpSocket" => port_or_name(value.sub("port"), &at.child("port"), errs),
            "grpc" => check::port_number(value.int("port"), &at.child("port"), errs),
            "sleep" => sleep(value.int("seconds"), grace, &at, errs),
            _ => {}
        }
    }
    if count == 0 {
        errs.required(path, "must specify a handler type");
    }
}

fn http_get(action: &Value, path: &Path, errs: &mut ErrorList) {
    check::required_text(action, "path", path, errs);
    port_or_name(action.sub("port"), &path.child("port"), errs);
    let scheme = action.text("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errs.unsupported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in action.items("httpHeaders") {
        let name = header.text("name");
        errs.each(&path.child("httpHeaders"), name, names::http_header_name(name));
    }
}

fn sleep(seconds: i64, grace: Option<i64>, path: &Path, errs: &mut ErrorList) {
    if let Some(grace) = grace.filter(|g| seconds < 0 || seconds > *g) {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errs.invalid(path, seconds, &detail);
    }
}

/// Validates the `lifecycle` of a container.
pub fn lifecycle(lifecycle: &Value, spec: &Value, path: &Path, errs: &mut ErrorList) {
    let grace = spec.opt_int("terminationGracePeriodSeconds");
    for hook in ["postStart", "preStop"] {
        if let Some(action) = lifecycle.at(hook) {
            handler(action, &["exec", "httpGet", "tcpSocket", "sleep"], grace, &path.child(hook), errs);
        }
    }
    if let Some(signal) = lifecycle.opt_text("stopSignal") {
        stop_signal(signal, spec, &path.child("stopSignal"), errs);
    }
}

fn stop_signal(signal: &str, spec: &Value, path: &Path, errs: &mut ErrorList) {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    let Some(os) = spec.at("os") else {
        errs.forbidden(path, "may not be set for containers with empty `spec.os.name`");
        return;
    };
    let name = signal.strip_prefix("SIG").unwrap_or_default();
    let offset = |prefix: &str, max: u32| {
        name.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| (1..=max).contains(&n))
    };
    match os.text("name") {
        "windows" if !matches!(name, "KILL" | "TERM") => {
            errs.unsupported(path, signal, &["SIGKILL", "SIGTERM"])
        }
        "linux" if !NAMES.contains(&name) && !offset("RTMIN+", 15) && !offset("RTMAX-", 14) => {
            let mut all: Vec<String> = NAMES.iter().map(|n| format!("SIG{n}")).collect();
            all.extend((1..=15).map(|n| format!("SIGRTMIN+{n}")));
            all.extend((1..=14).map(|n| format!("SIGRTMAX-{n}")));
            all.sort();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            errs.unsupported(path, signal, &all);
        }
        _ => {}
    }
}
