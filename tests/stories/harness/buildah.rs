//! Buildah with private storage.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tools;

/// Buildah, and the folder of its storage and configuration.
#[derive(Debug)]
pub(crate) struct Buildah {
    buildah: PathBuf,
    dir: TempDir,
}

impl Buildah {
    /// Creates Buildah's configuration, which accepts unsigned images.
    ///
    /// # Panics
    /// If a file cannot be written.
    pub(crate) fn new(buildah: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(dir.path().join("policy.json"), policy).expect("write buildah's policy");
        Self {
            buildah: buildah.to_owned(),
            dir,
        }
    }

    /// Builds an image of one file and pushes it with a zstd layer.
    ///
    /// # Errors
    /// Buildah's output.
    pub(crate) fn build_and_push(&self, file: &Path, image: &str) -> Result<(), String> {
        let policy_file = self.path("policy.json");
        let container = self.run(&["from", "scratch"])?;
        self.run(&[
            "copy",
            container.trim(),
            &file.display().to_string(),
            "/file",
        ])?;
        let policy = ["--signature-policy", &policy_file];
        self.run(
            &[
                &["commit"],
                &policy[..],
                &["--format", "oci", container.trim(), "built"],
            ]
            .concat(),
        )?;
        let flags = [
            "--tls-verify=false",
            "--compression-format",
            "zstd",
            "built",
            image,
        ];
        self.run(&[&["push"], &policy[..], &flags].concat())
            .map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let root = self.path("root");
        let runroot = self.path("run");
        let flags = [
            "--root",
            &root,
            "--runroot",
            &runroot,
            "--storage-driver",
            "vfs",
        ];
        tools::run(&self.buildah, flags.iter().chain(arguments))
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}
