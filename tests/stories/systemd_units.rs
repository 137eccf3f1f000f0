//! The systemd units of `deploy/`, without systemd: each unit's command line with the example
//! configuration, as an unprivileged user, on a file system that is read-only but for the state
//! folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use flotilla_lab::why_namespaces_are_unavailable;

use crate::harness::service::TestService;
use crate::harness::tools::{self, run};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
/// The ids of an unprivileged user and group, instead of the unit's own user.
const UNPRIVILEGED_ID: &str = "65534";
/// Applies `ProtectSystem=strict`, `StateDirectory=` and `UMask=`, and runs the service; `$0` is
/// its state folder.
const SANDBOX: &str = r#"mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / &&
    ! touch /flotilla-was-here 2>/dev/null && umask 077 && exec "$@""#;
/// Applies `User=`, `NoNewPrivileges=` and the empty capability sets.
const SETPRIV: &[&str] = &[
    "setpriv",
    "--reuid",
    UNPRIVILEGED_ID,
    "--regid",
    UNPRIVILEGED_ID,
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "--inh-caps=-all",
];

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The command line of a unit.
fn exec_start(service: &str) -> Vec<String> {
    let unit = deployed(&format!("systemd/flotilla-{service}.service"));
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("the unit has ExecStart");
    line.split_whitespace().map(str::to_owned).collect()
}

/// Writes the example configuration of a service, with its folders below `root` and free ports.
fn write_configuration(service: &str, root: &str) {
    let example = deployed(&format!("config/{service}.toml"));
    let here = example
        .replace("/etc/flotilla", &format!("{root}/etc"))
        .replace("/var/lib/flotilla", &format!("{root}/var"))
        .replace("0.0.0.0:5000", "127.0.0.1:0")
        .replace("0.0.0.0:5002", "127.0.0.1:0")
        .replace("0.0.0.0:7070", "127.0.0.1:0")
        .replace("127.0.0.1:7071", "127.0.0.1:0")
        .replace("127.0.0.1:5100", "127.0.0.1:0")
        .replace("127.0.0.1:5101", "127.0.0.1:0")
        .replace("127.0.0.1:5001", "127.0.0.1:0");
    fs::write(format!("{root}/etc/{service}.toml"), here).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn units_run_in_a_sandbox_with_the_example_configuration() {
    if let Some(reason) = why_namespaces_are_unavailable() {
        return tools::skip("systemd units in a sandbox", &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display().to_string();
    let pki = format!("{root}/etc/pki");
    let flotilla = |arguments: &[&str]| run(Path::new(FLOTILLA), arguments).unwrap();
    fs::create_dir_all(format!("{root}/etc")).unwrap();
    flotilla(&["pki", "init", "--dir", &pki, "--region", "eu-1"]);
    flotilla(&["pki", "issue", "--dir", &pki, "--server", "origin.internal"]);
    flotilla(&[
        "pki",
        "issue",
        "--dir",
        &pki,
        "--server",
        "tracker.internal",
    ]);
    flotilla(&["pki", "issue", "--dir", &pki, "--peer", "peer"]);
    fs::copy(FLOTILLA, format!("{root}/flotilla")).unwrap();
    for service in ["origin", "tracker", "peer"] {
        write_configuration(service, &root);
        let state = format!("{root}/var/{service}");
        fs::create_dir_all(&state).unwrap();
        run(
            Path::new("chown"),
            ["-R", &format!("{UNPRIVILEGED_ID}:{UNPRIVILEGED_ID}"), &root],
        )
        .unwrap();
        let command = exec_start(service);
        assert_eq!(
            command[0], "/usr/local/bin/flotilla",
            "the path in docs/operations.md"
        );
        let arguments = command[1..]
            .iter()
            .map(|word| word.replace("/etc/flotilla", &format!("{root}/etc")));
        let mut sandboxed = Command::new("unshare");
        sandboxed
            .args(["--mount", "--", "sh", "-c", SANDBOX, &state])
            .args(SETPRIV);
        let process = TestService::start(sandboxed.arg(format!("{root}/flotilla")).args(arguments));
        process.terminate();
        process.wait_until_closed().await;
        process.wait_until_drained().await;
    }
}
