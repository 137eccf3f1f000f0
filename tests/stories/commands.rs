//! The program's commands: errors, help, and output for scripts.

use std::path::Path;
use std::process::Command;

use clap::{Arg, CommandFactory as _};
use flotilla::cli::Cli;
use flotilla_runtime::config;

use crate::harness::service::TestService;
use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn flotilla(arguments: &[&str]) -> Result<String, String> {
    run(Path::new(FLOTILLA), arguments)
}

#[test]
fn invalid_flags_suggest_the_right_one() {
    let message = flotilla(&["demo", "--pears", "3"]).unwrap_err();
    assert!(
        message.contains("--pears") && message.contains("--peers"),
        "{message}"
    );
    let message = flotilla(&["demo", "--rate", "50Mbyte"]).unwrap_err();
    assert!(
        message.contains("50Mbyte") && message.contains("50Mbit"),
        "{message}"
    );
}

#[test]
fn invalid_layout_names_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let message = flotilla(&["demo", "--image", dir.path().to_str().unwrap()]).unwrap_err();
    assert!(
        message.contains("index.json") && message.contains("skopeo"),
        "{message}"
    );
}

#[test]
fn unusable_storage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    flotilla(&["pki", "init", "--dir", &path("pki")]).unwrap();
    std::fs::write(path("file"), "not a folder").unwrap();
    let storage = format!("file://{}", path("file"));
    let seal_key = path("pki/local.seal.key");
    let origin = |storage: &str| {
        flotilla(&[
            "origin",
            "--listen",
            "127.0.0.1:0",
            "--storage",
            storage,
            "--seal-key",
            &seal_key,
        ])
    };
    let message = origin(&storage).unwrap_err();
    assert!(
        message.contains("start the origin") && message.contains(&path("file")),
        "{message}"
    );
    let message = origin("ftp://somewhere").unwrap_err();
    assert!(
        message.contains("ftp") && message.contains("file:///"),
        "{message}"
    );
}

#[test]
fn check_reports_an_empty_storage() {
    let dir = tempfile::tempdir().unwrap();
    let storage = format!("file://{}", dir.path().display());
    let message = flotilla(&["origin", "check", "--storage", &storage]).unwrap_err();
    assert!(
        message.contains("no origin has started on this storage") && message.contains("damaged: "),
        "{message}"
    );
    assert!(
        message.contains("is --storage the same as in the origins' configuration?"),
        "{message}"
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "the check must not write"
    );
    let message =
        flotilla(&["origin", "check", "--storage", &format!("{storage}/typo")]).unwrap_err();
    assert!(
        message.contains("typo") && message.contains("No such file"),
        "{message}"
    );
    let printed = flotilla(&["origin", "check", "--storage", &storage, "--json"]).unwrap_err();
    assert!(
        printed.contains(r#""damage":{"count":1,"shown":[{"key":"format""#),
        "{printed}"
    );
    let message = flotilla(&["origin"]).unwrap_err();
    assert!(message.contains("--storage is missing"), "{message}");
}

#[test]
fn demo_prints_one_json_object() {
    let printed = flotilla(&[
        "demo", "--peers", "3", "--size", "4MiB", "--rate", "80Mbit", "--json",
    ])
    .unwrap();
    let outcome: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(outcome["ok"], true, "{printed}");
    assert_eq!(outcome["peers"], 3);
    let fields = [
        "peers",
        "zones",
        "image_bytes",
        "origin_bytes",
        "peer_bytes",
        "origin_copies",
        "p50_s",
        "p99_s",
        "rate_bit_s",
        "pipelined_bound_s",
        "p99_over_bound",
        "ok",
    ];
    assert_eq!(outcome.as_object().unwrap().len(), fields.len());
    assert!(
        fields.iter().all(|field| outcome.get(field).is_some()),
        "{printed}"
    );
}

#[test]
fn unknown_scenario_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("typo.toml");
    std::fs::write(&scenario, "nam = \"typo\"\n").unwrap();
    let message = flotilla(&["simulate", scenario.to_str().unwrap()]).unwrap_err();
    assert!(
        message.contains("nam") && message.contains("typo.toml"),
        "{message}"
    );
}

#[test]
fn example_configurations_are_valid_and_complete() {
    for service in ["origin", "tracker", "peer"] {
        let path = format!(
            "{}/deploy/config/{service}.toml",
            env!("CARGO_MANIFEST_DIR")
        );
        config::try_parse_from::<Cli, _>(["flotilla", service, "--config", &path]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let command = Cli::command();
        let flags = command
            .find_subcommand(service)
            .unwrap()
            .get_arguments()
            .filter_map(Arg::get_long);
        for key in flags.filter(|flag| !["config", "help"].contains(flag)) {
            let mentions_key = |line: &str| {
                line.trim_start_matches("# ")
                    .starts_with(&format!("{key} = "))
            };
            assert!(
                text.lines().any(mentions_key),
                "{path} does not mention {key}"
            );
        }
    }
}

#[test]
fn example_hosts_toml_matches_the_example_peer() {
    let deployed = |file: &str| format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let printed = flotilla(&[
        "peer",
        "hosts-toml",
        "--config",
        &deployed("config/peer.toml"),
    ])
    .unwrap();
    assert_eq!(
        printed,
        std::fs::read_to_string(deployed("containerd/_default/hosts.toml")).unwrap()
    );
}

#[test]
fn configuration_errors_name_the_key_and_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flotilla.toml");
    for (service, text, words) in [
        (
            "origin",
            "listn = '127.0.0.1:0'",
            ["unknown key 'listn'", "did you mean 'listen'?"],
        ),
        ("origin", "up = 'fast'", ["key 'up'", "for example 50Mbit"]),
        (
            "origin",
            "[tls]\ncert = 'x'",
            ["unknown key 'tls'", "valid keys are: listen, storage"],
        ),
        (
            "tracker",
            "open_lease = 3",
            ["unknown key 'open_lease'", "did you mean 'open-leases'?"],
        ),
        (
            "tracker",
            "listen = 7070",
            ["key 'listen'", "write an IP address and a port"],
        ),
        (
            "tracker",
            "[lease]\nopen = 3",
            ["unknown key 'lease'", "valid keys are: listen, trackers"],
        ),
        (
            "peer",
            "mirorr = '127.0.0.1:0'",
            ["unknown key 'mirorr'", "did you mean 'mirror'?"],
        ),
        (
            "peer",
            "quota = 'much'",
            ["key 'quota'", "for example 64MiB"],
        ),
        (
            "peer",
            "[store]\ndir = '/s'",
            ["key 'store'", "without [sections]"],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let message = flotilla(&[service, "--config", file.to_str().unwrap()]).unwrap_err();
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{service} with {text}: {message}"
        );
        assert!(
            message.contains("flotilla.toml") && message.contains("exit status: 2"),
            "{message}"
        );
    }
}

#[test]
fn completions_include_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let script = flotilla(&["completions", shell]).unwrap();
        assert!(
            script.contains("hosts-toml") && script.contains("trusted-keys"),
            "{shell}"
        );
    }
}

#[test]
fn help_has_examples_units_and_variables() {
    let help = flotilla(&["peer", "--help"]).unwrap();
    for word in [
        "Examples:",
        "status",
        "50GiB",
        "500Mbit",
        "FLOTILLA_TRUSTED_KEYS",
        "Store:",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn status_without_a_peer_names_the_fix() {
    let message = flotilla(&["peer", "status", "--mirror", "127.0.0.1:1"]).unwrap_err();
    assert!(
        message.contains("127.0.0.1:1") && message.contains("--mirror ADDR"),
        "{message}"
    );
}

#[test]
fn status_of_another_service_names_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let pki = pki.to_str().unwrap();
    flotilla(&["pki", "init", "--dir", pki]).unwrap();
    flotilla(&["pki", "issue", "--dir", pki, "--server", "127.0.0.1"]).unwrap();
    let tls = [
        "--tls-cert",
        "127.0.0.1.pem",
        "--tls-key",
        "127.0.0.1.key",
        "--tls-ca",
        "ca.pem",
    ];
    for (tls, why) in [
        (&tls[..], "an origin or a tracker with TLS"),
        (&[], "answered 404 Not Found"),
    ] {
        let mut tracker = Command::new(FLOTILLA);
        let tracker = TestService::start(
            tracker
                .args(["tracker", "--listen", "127.0.0.1:0"])
                .args(tls)
                .current_dir(pki),
        );
        let message =
            flotilla(&["peer", "status", "--mirror", &tracker.address.to_string()]).unwrap_err();
        assert!(
            message.contains(why) && message.contains("set --mirror ADDR"),
            "{message}"
        );
    }
}

#[test]
fn broken_pipe_is_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki").display().to_string();
    // The shell prints the exit status of the first command.
    let line = format!("'{FLOTILLA}' pki init --dir '{pki}' | true; echo \"${{PIPESTATUS[0]}}\"");
    let mut shell = Command::new("bash");
    let output = shell.args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
