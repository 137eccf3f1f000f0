//! The systemd units of `deploy/` allow all system calls of their services. A call that is missing
//! in `SystemCallFilter=` fails without any log message, so it is found here or in production.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flotilla_common::units::ByteSize;
use flotilla_lab::{LabPlan, NetworkKind, PeerSetup};

use crate::harness::lab::TestLab;
use crate::harness::tools::{find_or_skip, run, skip};

const TEST: &str = "system calls of the systemd units";
const SERVICES: [&str; 3] = ["origin", "tracker", "peer"];

/// Writes a script that runs `flotilla` and records each service's system calls in a file. strace
/// runs as a detached grandchild (`-D`), so the service itself gets signals and sets the exit
/// status.
fn write_tracing_script(strace: &Path, dir: &Path) -> String {
    let flotilla = env!("CARGO_BIN_EXE_flotilla");
    let program = dir.join("flotilla");
    let strace = strace.display();
    let dir = dir.display();
    let script = format!(
        "#!/bin/sh\ncase $1 in pki) exec '{flotilla}' \"$@\" ;; esac\n\
         exec '{strace}' -D -f -qq -s 0 -o \"{dir}/$1.$$\" '{flotilla}' \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program.display().to_string()
}

/// The system calls of a service's processes, each with the first line of the trace that has it.
fn recorded_calls(service: &str, dir: &Path) -> BTreeMap<String, String> {
    let mut calls = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{service}."))
        {
            // `PID  NAME(ARGUMENTS) = RESULT`; lines without a name are signals, exits and resumed
            // calls.
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let call = line
                    .split_once(' ')
                    .and_then(|(_, call)| call.trim_start().split_once('('));
                let is_name =
                    |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if let Some((name, _)) = call.filter(|(name, _)| is_name(name)) {
                    calls
                        .entry(name.to_owned())
                        .or_insert_with(|| line.to_owned());
                }
            }
        }
    }
    calls
}

/// Parses systemd's sets of system calls: the members of each, which may be sets.
fn parse_sets(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sets = BTreeMap::<_, Vec<_>>::new();
    let mut current = "";
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        if line.starts_with('@') {
            current = line;
        } else if !line.trim().is_empty() {
            sets.entry(current).or_default().push(line.trim());
        }
    }
    sets
}

/// All system calls of a set, or the call itself.
fn expand<'s>(name: &'s str, sets: &BTreeMap<&'s str, Vec<&'s str>>) -> BTreeSet<&'s str> {
    match sets.get(name) {
        Some(members) => members
            .iter()
            .flat_map(|member| expand(member, sets))
            .collect(),
        None => BTreeSet::from([name]),
    }
}

/// The values of a unit's key, in order.
fn settings<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let value = |line: &'u str| line.strip_prefix(key)?.strip_prefix('=');
    unit.lines().filter_map(value).collect()
}

/// The system calls that a unit allows: systemd.exec(5), "System Call Filtering".
fn allowed_calls<'s>(unit: &'s str, sets: &BTreeMap<&'s str, Vec<&'s str>>) -> BTreeSet<&'s str> {
    let mut allowed = expand("@default", sets);
    for line in settings(unit, "SystemCallFilter") {
        let (names, is_allowed) = line
            .strip_prefix('~')
            .map_or((line, true), |names| (names, false));
        for call in names.split_whitespace().flat_map(|name| expand(name, sets)) {
            if is_allowed {
                allowed.insert(call);
            } else {
                allowed.remove(call);
            }
        }
    }
    allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn units_allow_all_system_calls_of_their_services() {
    let Some(tools) = find_or_skip(TEST, &["strace", "systemd-analyze"], false) else {
        return;
    };
    if run(&tools[0], ["-D", "-qq", "-o", "/dev/null", "true"]).is_err() {
        return skip(TEST, "strace is not allowed to trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let plan = LabPlan::new(
        write_tracing_script(&tools[0], dir.path()),
        NetworkKind::Loopback,
    );
    let mut lab = TestLab::with_plan(plan, ByteSize(8 << 20), &vec![PeerSetup::default(); 2]).await;
    for peer in 0..2 {
        lab.finish_pull(lab.pull(peer)).await;
    }
    // Covers reading an existing store, and draining.
    lab.peer(1).terminate().await.unwrap();
    lab.peer(1).start().await.unwrap();
    lab.finish_pull(lab.pull(1)).await;
    for service in [0, 1] {
        assert!(lab.peer(service).terminate().await.unwrap().success());
    }
    assert!(lab.tracker(0).terminate().await.unwrap().success());
    assert!(lab.origin(0).terminate().await.unwrap().success());

    let text = run(&tools[1], ["syscall-filter", "--no-pager"]).unwrap();
    let sets = parse_sets(&text);
    for service in SERVICES {
        let unit = format!(
            "{}/deploy/systemd/flotilla-{service}.service",
            env!("CARGO_MANIFEST_DIR")
        );
        let unit = fs::read_to_string(unit).unwrap();
        let allowed = allowed_calls(&unit, &sets);
        let calls = recorded_calls(service, dir.path());
        assert!(
            allowed.contains("sendfile")
                && !allowed.contains("mount")
                && !allowed.contains("setpriority")
        );
        assert!(
            calls.contains_key("listen") && calls.contains_key("exit_group"),
            "{service}: {calls:?}"
        );
        let refused: Vec<_> = calls
            .iter()
            .filter(|(name, _)| !allowed.contains(name.as_str()))
            .collect();
        assert!(
            refused.is_empty(),
            "flotilla-{service}.service refuses {refused:#?}"
        );
    }
}
