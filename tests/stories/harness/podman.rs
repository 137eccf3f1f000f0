//! Podman with private storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::tools;

/// Podman, and the folder of its storage and configuration.
#[derive(Debug)]
pub(crate) struct Podman {
    podman: PathBuf,
    dir: TempDir,
}

impl Podman {
    /// Creates Podman's configuration with a `registries.conf`.
    ///
    /// # Panics
    /// If a file cannot be written.
    pub(crate) fn new(podman: &Path, registries_conf: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(dir.path().join("policy.json"), policy).expect("write Podman's policy");
        fs::write(dir.path().join("registries.conf"), registries_conf)
            .expect("write Podman's registries");
        Self {
            podman: podman.to_owned(),
            dir,
        }
    }

    /// Pulls an image and returns its digest.
    ///
    /// # Errors
    /// Podman's output.
    pub(crate) fn pull(&self, image: &str) -> Result<String, String> {
        let policy = self.path("policy.json");
        self.run(&["pull", "--quiet", "--signature-policy", &policy, image])?;
        self.run(&["image", "inspect", "--format", "{{.Digest}}", image])
            .map(|text| text.trim().to_owned())
    }

    /// Pushes an image under another name.
    ///
    /// # Errors
    /// Podman's output.
    pub(crate) fn push(&self, image: &str, target: &str) -> Result<(), String> {
        let policy = self.path("policy.json");
        self.run(&[
            "push",
            "--quiet",
            "--signature-policy",
            &policy,
            image,
            target,
        ])
        .map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let root = self.path("root");
        let runroot = self.path("run");
        let tmp = self.path("tmp");
        let flags = [
            "--root",
            &root,
            "--runroot",
            &runroot,
            "--tmpdir",
            &tmp,
            "--storage-driver",
            "vfs",
        ];
        let mut command = Command::new(&self.podman);
        command
            .args(flags)
            .args(arguments)
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"));
        tools::output(&mut command)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}
