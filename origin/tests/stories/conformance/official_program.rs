//! Runs the official conformance program, with every test and every optional interface enabled,
//! against both deployments, which must pass the same number of tests, and through a region of
//! three.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Deployment;
use crate::regions::harness::Regions;

/// Optional features of the specification that this origin implements.
const OPTIONS: [&str; 5] = [
    "OCI_API_BLOBS_DIGEST_HEADER",
    "OCI_API_BLOBS_MOUNT_ANONYMOUS",
    "OCI_API_BLOBS_UPLOAD_CANCEL",
    "OCI_API_MANIFESTS_DIGEST_HEADER",
    "OCI_API_MANIFESTS_TAG_PARAM",
];

/// Versions of the specification.
const VERSIONS: [&str; 2] = ["1.1", "dev"];

/// Number of tests by outcome.
type Counts = BTreeMap<String, u64>;

/// A registry, as the program reaches it.
struct Target<'a> {
    name: &'static str,
    address: SocketAddr,
    /// The authority of its certificate, if it serves HTTPS.
    authority: Option<&'a Path>,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official program: tests/official-conformance"]
async fn passes_in_both_deployments() {
    let Some(program) = program() else { return };
    for version in VERSIONS {
        let mut all_counts = Vec::new();
        for deployment in Deployment::start_all("the official conformance program").await {
            let target = Target {
                name: deployment.name,
                address: deployment.address,
                authority: None,
            };
            all_counts.push(passes(&program, version, &target).await);
        }
        assert!(all_counts[0]["Pass"] > 0);
        assert!(
            all_counts.iter().all(|counts| *counts == all_counts[0]),
            "version {version}: the deployments differ: {all_counts:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official program: tests/official-conformance --regions"]
async fn passes_in_a_region_of_three() {
    let Some(program) = program() else { return };
    for version in VERSIONS {
        let regions = Regions::start(3, |_, _| {}).await;
        let target = Target {
            name: "a region of three",
            address: regions.sites[0].origins[0].addr(),
            authority: Some(&regions.authority_file()),
        };
        passes(&program, version, &target).await;
    }
}

/// The official program, which must be built beforehand.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os("OCI_CONFORMANCE").map(PathBuf::from);
    if program.is_none() {
        eprintln!("SKIPPED the official conformance program: OCI_CONFORMANCE is not set");
    }
    program
}

/// Runs the program; nothing may fail or be skipped.
async fn passes(program: &Path, version: &str, target: &Target<'_>) -> Counts {
    let (counts, output) = run(program, version, target).await;
    let name = target.name;
    eprintln!("version {version}, {name}: {counts:?}");
    for outcome in ["Disabled", "Skip", "FAIL", "Error"] {
        assert_eq!(
            counts.get(outcome),
            Some(&0),
            "{outcome}, version {version}, {name}:\n{output}"
        );
    }
    counts
}

async fn run(program: &Path, version: &str, target: &Target<'_>) -> (Counts, String) {
    let results = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(results.path())
        .env("OCI_RESULTS_DIR", results.path());
    command
        .env("OCI_REGISTRY", target.address.to_string())
        .env("OCI_VERSION", version);
    match target.authority {
        // The program trusts the authorities of the system, which this variable replaces.
        Some(authority) => command
            .env("OCI_TLS", "enabled")
            .env("SSL_CERT_FILE", authority),
        None => command.env("OCI_TLS", "disabled"),
    };
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
