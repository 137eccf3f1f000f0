//! The official conformance program, which `tests/conformance` names: every test of it, every
//! optional interface on, in both set-ups; the same number must pass in both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::SetUp;

/// What the specification leaves to a registry, and ours does.
const OPTIONS: [&str; 5] = [
    "OCI_API_BLOBS_DIGEST_HEADER",
    "OCI_API_BLOBS_MOUNT_ANONYMOUS",
    "OCI_API_BLOBS_UPLOAD_CANCEL",
    "OCI_API_MANIFESTS_DIGEST_HEADER",
    "OCI_API_MANIFESTS_TAG_PARAM",
];

/// How many tests ended how.
type Counts = BTreeMap<String, u64>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official program: tests/conformance"]
async fn the_official_program_finds_nothing() {
    let program = std::env::var_os("OCI_CONFORMANCE").map(PathBuf::from);
    let Some(program) = program else {
        eprintln!("SKIPPED the official conformance program: OCI_CONFORMANCE does not name it");
        return;
    };
    for version in ["1.1", "dev"] {
        let mut seen = Vec::new();
        for set_up in SetUp::all("the official conformance program").await {
            let (counts, output) = run(&program, version, &set_up).await;
            eprintln!("version {version}, {}: {counts:?}", set_up.name);
            for none in ["Disabled", "Skip", "FAIL", "Error"] {
                assert_eq!(
                    counts.get(none),
                    Some(&0),
                    "{none}, version {version}, {}:\n{output}",
                    set_up.name
                );
            }
            seen.push(counts);
        }
        assert!(seen[0]["Pass"] > 0);
        assert!(
            seen.iter().all(|counts| *counts == seen[0]),
            "version {version}: the set-ups differ: {seen:?}"
        );
    }
}

async fn run(program: &Path, version: &str, set_up: &SetUp) -> (Counts, String) {
    let results = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(results.path())
        .env("OCI_RESULTS_DIR", results.path());
    command
        .env("OCI_REGISTRY", set_up.entrance.to_string())
        .env("OCI_TLS", "disabled")
        .env("OCI_VERSION", version);
    for option in OPTIONS {
        command.env(option, "true");
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        counts(&text),
        text + &String::from_utf8_lossy(&output.stderr),
    )
}

/// The summary's lines: `Pass....:   986`.
fn counts(output: &str) -> Counts {
    let summary = output.lines().filter_map(|line| {
        let (name, count) = line.trim().split_once(':')?;
        let name = name.strip_suffix("..")?.trim_end_matches('.');
        Some((name.to_owned(), count.trim().parse().ok()?))
    });
    summary.collect()
}
