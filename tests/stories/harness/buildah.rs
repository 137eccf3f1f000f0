//! Buildah with a storage of a story's own.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tools;

/// Buildah's folder and program.
#[derive(Debug)]
pub(crate) struct Buildah {
    buildah: PathBuf,
    dir: TempDir,
}

impl Buildah {
    /// Buildah that trusts everybody.
    ///
    /// # Panics
    /// If its files cannot be written.
    pub(crate) fn new(buildah: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(dir.path().join("policy.json"), policy).expect("write buildah's policy");
        Self {
            buildah: buildah.to_owned(),
            dir,
        }
    }

    /// Builds an image of one file, and pushes it with its layer in zstd.
    ///
    /// # Errors
    /// What buildah printed.
    pub(crate) fn build_and_push(&self, file: &Path, image: &str) -> Result<(), String> {
        let policy = self.path("policy.json");
        let container = self.run(&["from", "scratch"])?;
        self.run(&[
            "copy",
            container.trim(),
            &file.display().to_string(),
            "/file",
        ])?;
        let trusting = ["--signature-policy", &policy];
        self.run(
            &[
                &["commit"],
                &trusting[..],
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
        self.run(&[&["push"], &trusting[..], &flags].concat())
            .map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let (root, runroot) = (self.path("root"), self.path("run"));
        let own = [
            "--root",
            &root,
            "--runroot",
            &runroot,
            "--storage-driver",
            "vfs",
        ];
        tools::run(&self.buildah, own.iter().chain(arguments))
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}
