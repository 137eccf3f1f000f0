#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Parser;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateFiles, Identity, load_seal_key, load_trusted_keys};

use super::*;
use crate::pki::{CA, CA_KEY, TRUSTED_KEYS};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    pki: PkiArgs,
}

/// Runs `flotilla pki WORDS --dir DIR`: its output, or its error.
fn pki(dir: &Path, words: &[&str]) -> Result<String, String> {
    let arguments = ["pki"]
        .iter()
        .chain(words)
        .copied()
        .chain(["--dir", dir.to_str().unwrap()]);
    let args = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
    execute(&args.pki)
        .map(|report| report.to_string())
        .map_err(|error| error.to_string())
}

fn identity(dir: &Path, name: &str) -> Identity {
    Identity::load(
        &CertificateFiles {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
            authority: dir.join(CA),
        },
        Clock::system(),
    )
    .unwrap()
}

#[test]
fn init_and_issue_create_usable_keys() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("fleet");
    let output = pki(&dir, &["init", "--region", "eu-1"]).unwrap();
    for file in [CA, CA_KEY, TRUSTED_KEYS, "eu-1.seal.key", "pki issue"] {
        assert!(output.contains(file), "{output}");
    }
    pki(&dir, &["issue", "--peer", "vm-1"]).unwrap();
    assert_eq!(
        identity(&dir, "vm-1").peer_id(),
        Some("vm-1".parse().unwrap())
    );
    let output = pki(
        &dir,
        &[
            "issue",
            "--days",
            "7",
            "--server",
            "origin.example",
            "10.0.0.1",
        ],
    )
    .unwrap();
    assert!(
        output.contains("--tls-cert") && output.contains("origin.example.key"),
        "{output}"
    );
    assert_eq!(identity(&dir, "origin.example").peer_id(), None);

    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for secret in [CA_KEY, "eu-1.seal.key", "vm-1.key", "origin.example.key"] {
        assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
    }
}

#[test]
fn existing_files_are_not_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    pki(dir, &["init"]).unwrap();
    pki(dir, &["issue", "--peer", "vm-1"]).unwrap();
    let contents =
        || ["ca.key", "vm-1.key", TRUSTED_KEYS].map(|name| std::fs::read(dir.join(name)).unwrap());
    let before = contents();
    for words in [
        &["init"][..],
        &["init", "--region", "other"],
        &["issue", "--peer", "vm-1"],
        &["issue", "--origin", "local"],
    ] {
        let error = pki(dir, words).unwrap_err();
        assert!(error.contains("already exists"), "{error}");
    }
    assert_eq!(contents(), before);
}

#[test]
fn renewal_replaces_certificates_and_adds_seal_keys() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    pki(dir, &["init", "--region", "eu-1"]).unwrap();
    pki(dir, &["issue", "--peer", "vm-1", "--days", "1"]).unwrap();
    let running = identity(dir, "vm-1");
    let first = running.ends_unix_s();
    pki(dir, &["issue", "--peer", "vm-1", "--days", "9", "--renew"]).unwrap();
    running.reload().unwrap();
    assert_eq!(running.peer_id(), Some("vm-1".parse().unwrap()));
    assert!(running.ends_unix_s() > first);
    assert_eq!(
        dir.join("vm-1.key")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    pki(dir, &["issue", "--server", "origin.example"]).unwrap();
    pki(dir, &["issue", "--server", "origin.example", "--renew"]).unwrap();

    let first = load_seal_key(&dir.join("eu-1.seal.key")).unwrap();
    let output = pki(dir, &["issue", "--origin", "eu-1", "--renew"]).unwrap();
    assert!(
        output.contains("copy trusted-keys to every peer, and only then the seal key"),
        "{output}"
    );
    let trusted = load_trusted_keys(&dir.join(TRUSTED_KEYS))
        .unwrap()
        .to_string();
    assert!(
        trusted.starts_with(&first.key_id().to_string()) && trusted.contains(", "),
        "{trusted}"
    );
    assert_eq!(
        load_seal_key(&dir.join("eu-1.seal.key")).unwrap().key_id(),
        first.key_id()
    );
}

#[test]
fn region_of_a_certificate_outlives_renewals() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    pki(dir, &["init", "--region", "eu-1"]).unwrap();
    let issue = ["issue", "--server", "origin.example", "10.0.0.1"];
    let output = pki(dir, &[&issue[..], &["--region", "eu-1"]].concat()).unwrap();
    assert!(output.contains("the origin of region eu-1"), "{output}");
    let running = identity(dir, "origin.example");
    assert_eq!(running.region(), Some("eu-1".parse().unwrap()));
    pki(dir, &[&issue[..], &["--renew"]].concat()).unwrap();
    running.reload().unwrap();
    assert_eq!(running.region(), Some("eu-1".parse().unwrap()));
}

#[test]
fn renewal_requires_an_issued_certificate() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    pki(dir, &["init", "--region", "eu-1"]).unwrap();
    let files = || std::fs::read_dir(dir).unwrap().count();
    let before = (files(), std::fs::read(dir.join(TRUSTED_KEYS)).unwrap());
    for (words, file) in [
        (["issue", "--peer", "vm-l", "--renew"], "vm-l.pem"),
        (
            ["issue", "--server", "orign.example", "--renew"],
            "orign.example.pem",
        ),
        (["issue", "--origin", "eu-2", "--renew"], "eu-2.seal.key"),
    ] {
        let error = pki(dir, &words).unwrap_err();
        assert!(
            error.contains(file)
                && error.contains("cannot renew")
                && error.contains("check the name"),
            "{error}"
        );
    }
    assert_eq!(
        (files(), std::fs::read(dir.join(TRUSTED_KEYS)).unwrap()),
        before
    );
    let error = pki(dir, &["init", "--region", "eu-1"]).unwrap_err();
    assert!(
        error.contains("another directory") && !error.contains("--renew"),
        "{error}"
    );
    pki(dir, &["issue", "--peer", "vm-1"]).unwrap();
    let error = pki(dir, &["issue", "--peer", "vm-1"]).unwrap_err();
    assert!(error.contains("with --renew"), "{error}");
}

#[test]
fn seal_keys_of_several_regions_are_trusted() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    pki(dir, &["init", "--region", "eu-1"]).unwrap();
    pki(dir, &["issue", "--origin", "us-1"]).unwrap();
    let lines = std::fs::read_to_string(dir.join(TRUSTED_KEYS)).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    load_trusted_keys(&dir.join(TRUSTED_KEYS)).unwrap();
    assert_eq!(
        load_seal_key(&dir.join("us-1.seal.key"))
            .unwrap()
            .issuer()
            .as_str(),
        "us-1"
    );
}

#[test]
fn errors_name_the_fix() {
    let root = tempfile::tempdir().unwrap();
    let error = pki(root.path(), &["issue", "--peer", "vm-1"]).unwrap_err();
    assert!(
        error.contains("ca.pem") && error.contains("flotilla pki init"),
        "{error}"
    );
    pki(root.path(), &["init"]).unwrap();
    for (words, fix) in [
        (&["issue", "--peer", "VM_1"][..], "1 to 63 of a-z"),
        (
            &["issue", "--server", "../escape"],
            "is not a valid server name",
        ),
        (
            &["issue", "--server", "vm-1.peer.flotilla.internal"],
            "is not a valid server name",
        ),
        (
            &["issue", "--server", "eu-1.origin.flotilla.internal"],
            "--region NAME",
        ),
        (
            &["issue", "--peer", "vm-1", "--region", "eu-1"],
            "cannot be used with",
        ),
        (
            &["issue", "--server", "origin.example", "--region", "EU_1"],
            "1 to 63 of a-z",
        ),
        (&["issue"], "--peer"),
        (
            &["issue", "--peer", "a", "--origin", "b"],
            "cannot be used with",
        ),
    ] {
        let error = pki(root.path(), words).unwrap_err();
        assert!(error.contains(fix), "{error}");
    }
}
