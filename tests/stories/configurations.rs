//! Configurations that cannot work, or not as they were meant: refused before anything starts, with the keys and the cure.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::tools::output;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// A folder with a fleet's files in `pki`, in which services run.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.run("pki init --dir pki --region eu-1").unwrap();
        folder.run("pki issue --dir pki --server 127.0.0.1").unwrap();
        folder.run("pki issue --dir pki --peer vm-1").unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A command line in the folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(FLOTILLA);
        command.args(line.split_whitespace()).current_dir(self.path());
        command
    }

    fn run(&self, line: &str) -> Result<String, String> {
        output(&mut self.command(line))
    }

    /// What a service says that does not start with this configuration.
    fn refusal(&self, service: &str, configuration: &str) -> String {
        std::fs::write(self.path().join("flotilla.toml"), configuration).unwrap();
        let said = self.run(&format!("{service} --config flotilla.toml"));
        said.expect_err("it must not start")
    }
}

#[test]
fn a_part_of_tls_is_never_taken_for_plain_http() {
    let folder = Folder::new();
    let origin = "listen = '127.0.0.1:0'\nstorage = 'memory:///'\nseal-key = 'pki/eu-1.seal.key'\n";
    let tracker = "listen = '127.0.0.1:0'\n";
    let peer = "origin = ['http://127.0.0.1:5000']\nstore = 'store'\ntrusted-keys = 'pki/trusted-keys'\n";
    let cert = "tls-cert = 'pki/127.0.0.1.pem'\n";
    let key = "tls-key = 'pki/127.0.0.1.key'\n";
    let ca = "tls-ca = 'pki/ca.pem'\n";
    for (service, rest) in [("origin", origin), ("tracker", tracker), ("peer", peer)] {
        for (given, missing) in [
            ([cert, "", ""], "tls-key and tls-ca are missing"),
            ([cert, key, ""], "tls-ca is missing"),
            ([cert, "", ca], "tls-key is missing"),
            (["", key, ca], "tls-cert is missing"),
            (["", "", ca], "tls-cert and tls-key are missing"),
        ] {
            let message = folder.refusal(service, &format!("{rest}{}", given.concat()));
            assert!(
                message.contains(missing) && message.contains("flotilla pki issue"),
                "{service}: {message}"
            );
        }
    }
    let message = folder.run("tracker --listen 127.0.0.1:0 --tls-cert pki/127.0.0.1.pem").unwrap_err();
    assert!(
        message.contains("tls-key and tls-ca are missing") && message.contains("plain HTTP"),
        "{message}"
    );
    let message = folder.refusal("peer", peer);
    assert!(message.contains("tls-cert and tls-key and tls-ca are missing"), "{message}");
}
