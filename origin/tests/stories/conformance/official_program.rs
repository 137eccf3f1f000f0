//! Runs the official conformance program, with every test and every optional interface enabled,
//! against both deployments. Both must pass the same number of tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Deployment;

/// Optional features of the specification that this origin implements.
const OPTIONS: [&str; 5] = [
    "OCI_API_BLOBS_DIGEST_HEADER",
    "OCI_API_BLOBS_MOUNT_ANONYMOUS",
    "OCI_API_BLOBS_UPLOAD_CANCEL",
    "OCI_API_MANIFESTS_DIGEST_HEADER",
    "OCI_API_MANIFESTS_TAG_PARAM",
];

/// Number of tests by outcome.
type Counts = BTreeMap<String, u64>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official program: tests/official-conformance"]
async fn passes_in_both_deployments() {
    let program = std::env::var_os("OCI_CONFORMANCE").map(PathBuf::from);
    let Some(program) = program else {
        eprintln!("SKIPPED the official conformance program: OCI_CONFORMANCE is not set");
        return;
    };
    for version in ["1.1", "dev"] {
        let mut all_counts = Vec::new();
        for deployment in Deployment::start_all("the official conformance program").await {
            let (counts, output) = run(&program, version, &deployment).await;
            eprintln!("version {version}, {}: {counts:?}", deployment.name);
            for outcome in ["Disabled", "Skip", "FAIL", "Error"] {
                assert_eq!(
                    counts.get(outcome),
                    Some(&0),
                    "{outcome}, version {version}, {}:\n{output}",
                    deployment.name
                );
            }
            all_counts.push(counts);
        }
        assert!(all_counts[0]["Pass"] > 0);
        assert!(
            all_counts.iter().all(|counts| *counts == all_counts[0]),
            "version {version}: the deployments differ: {all_counts:?}"
        );
    }
}

async fn run(program: &Path, version: &str, deployment: &Deployment) -> (Counts, String) {
    let results = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(results.path())
        .env("OCI_RESULTS_DIR", results.path());
    command
        .env("OCI_REGISTRY", deployment.address.to_string())
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

/// Parses the lines of the summary: `Pass....:   986`.
fn counts(output: &str) -> Counts {
    let summary = output.lines().filter_map(|line| {
        let (name, count) = line.trim().split_once(':')?;
        let name = name.strip_suffix("..")?.trim_end_matches('.');
        Some((name.to_owned(), count.trim().parse().ok()?))
    });
    summary.collect()
}
