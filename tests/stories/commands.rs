//! The program as people and scripts type it.

use std::path::Path;

use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn flotilla(arguments: &[&str]) -> Result<String, String> {
    run(Path::new(FLOTILLA), arguments)
}

#[test]
fn a_bad_flag_names_the_right_one() {
    let message = flotilla(&["demo", "--pears", "3"]).unwrap_err();
    assert!(message.contains("--pears") && message.contains("--peers"), "{message}");
    let message = flotilla(&["demo", "--rate", "50Mbyte"]).unwrap_err();
    assert!(message.contains("50Mbyte") && message.contains("50Mbit"), "{message}");
}

#[test]
fn a_folder_that_is_no_image_says_what_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let message = flotilla(&["demo", "--image", dir.path().to_str().unwrap()]).unwrap_err();
    assert!(message.contains("index.json") && message.contains("skopeo"), "{message}");
}

#[test]
fn an_origin_on_an_unusable_storage_says_which_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    flotilla(&["pki", "init", "--dir", &path("pki")]).unwrap();
    std::fs::write(path("file"), "not a folder").unwrap();
    let storage = format!("file://{}", path("file"));
    let seal_key = path("pki/local.seal.key");
    let origin = |storage: &str| {
        flotilla(&["origin", "--listen", "127.0.0.1:0", "--storage", storage, "--seal-key", &seal_key])
    };
    let message = origin(&storage).unwrap_err();
    assert!(message.contains("start the origin") && message.contains(&path("file")), "{message}");
    let message = origin("ftp://somewhere").unwrap_err();
    assert!(message.contains("ftp") && message.contains("file:///"), "{message}");
}

#[test]
fn a_demonstration_prints_one_json_object() {
    let printed =
        flotilla(&["demo", "--peers", "3", "--size", "4MiB", "--rate", "80Mbit", "--json"]).unwrap();
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
    assert!(fields.iter().all(|field| outcome.get(field).is_some()), "{printed}");
}

#[test]
fn a_scenario_with_a_typo_names_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("typo.toml");
    std::fs::write(&scenario, "nam = \"typo\"\n").unwrap();
    let message = flotilla(&["simulate", scenario.to_str().unwrap()]).unwrap_err();
    assert!(message.contains("nam") && message.contains("typo.toml"), "{message}");
}
