//! The system calls of the services, and what the units of `deploy/` let through. What a unit
//! refuses is an error to the service, and no message anywhere: a call that its `SystemCallFilter=`
//! forgets is found here or by an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flotilla_common::units::ByteSize;
use flotilla_lab::{LabPlan, NetworkKind, PeerSetup};

use crate::harness::lab_scene::LabScene;
use crate::harness::tools::{find, run, skip};

const STORY: &str = "the units' system calls";
const SERVICES: [&str; 3] = ["origin", "tracker", "peer"];

/// A program that is `flotilla`, but each service writes its system calls into a file: the tracer
/// is a process aside, so that signals and ends are the service's own.
fn traced(strace: &Path, dir: &Path) -> String {
    let flotilla = env!("CARGO_BIN_EXE_flotilla");
    let (strace, dir, program) = (strace.display(), dir.display(), dir.join("flotilla"));
    let script = format!(
        "#!/bin/sh\ncase $1 in pki) exec '{flotilla}' \"$@\" ;; esac\n\
         exec '{strace}' -D -f -qq -s 0 -o \"{dir}/$1.$$\" '{flotilla}' \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program.display().to_string()
}

/// The calls that the processes of a service made, each with the first line that shows it.
fn calls_of(service: &str, dir: &Path) -> BTreeMap<String, String> {
    let mut calls = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{service}."))
        {
            // `NUMBER  NAME(ARGUMENTS) = RESULT`; what is resumed, a signal and an end have no name in its place.
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

/// What systemd means by its sets: each set's members, sets among them.
fn sets(printed: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sets = BTreeMap::<_, Vec<_>>::new();
    let mut current = "";
    for line in printed
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

fn expand<'s>(name: &'s str, sets: &BTreeMap<&'s str, Vec<&'s str>>) -> BTreeSet<&'s str> {
    match sets.get(name) {
        Some(members) => members
            .iter()
            .flat_map(|member| expand(member, sets))
            .collect(),
        None => BTreeSet::from([name]),
    }
}

/// The lines of a unit with this key, in order.
fn settings<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let value = |line: &'u str| line.strip_prefix(key)?.strip_prefix('=');
    unit.lines().filter_map(value).collect()
}

/// What a unit's lines let through: systemd.exec(5), "System Call Filtering".
fn allowed<'s>(unit: &'s str, sets: &BTreeMap<&'s str, Vec<&'s str>>) -> BTreeSet<&'s str> {
    let mut allowed = expand("@default", sets);
    for line in settings(unit, "SystemCallFilter") {
        let (names, is_let_through) = line
            .strip_prefix('~')
            .map_or((line, true), |names| (names, false));
        for call in names.split_whitespace().flat_map(|name| expand(name, sets)) {
            if is_let_through {
                allowed.insert(call);
            } else {
                allowed.remove(call);
            }
        }
    }
    allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_units_let_every_system_call_of_their_services_through() {
    let Some(tools) = find(STORY, &["strace", "systemd-analyze"], false) else {
        return;
    };
    if run(&tools[0], ["-D", "-qq", "-o", "/dev/null", "true"]).is_err() {
        return skip(STORY, "strace may trace nothing here");
    }
    let dir = tempfile::tempdir().unwrap();
    let plan = LabPlan::new(traced(&tools[0], dir.path()), NetworkKind::Loopback);
    let mut scene = LabScene::of(plan, ByteSize(8 << 20), &vec![PeerSetup::default(); 2]).await;
    for peer in 0..2 {
        scene.completes(scene.pull(peer)).await;
    }
    // A store that is there is read again, and everybody drains.
    scene.lab.peer(1).terminate().await.unwrap();
    scene.lab.peer(1).start().await.unwrap();
    scene.completes(scene.pull(1)).await;
    for service in [0, 1] {
        assert!(scene.lab.peer(service).terminate().await.unwrap().success());
    }
    assert!(scene.lab.tracker(0).terminate().await.unwrap().success());
    assert!(scene.lab.origin().terminate().await.unwrap().success());

    let printed = run(&tools[1], ["syscall-filter", "--no-pager"]).unwrap();
    let sets = sets(&printed);
    for service in SERVICES {
        let unit = format!(
            "{}/deploy/systemd/flotilla-{service}.service",
            env!("CARGO_MANIFEST_DIR")
        );
        let unit = fs::read_to_string(unit).unwrap();
        let (allowed, calls) = (allowed(&unit, &sets), calls_of(service, dir.path()));
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
