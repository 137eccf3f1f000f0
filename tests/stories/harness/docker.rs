//! A private Docker daemon.

use std::fs;
use std::path::{Path, PathBuf};

use super::daemon::Daemon;
use super::tools;

/// A running daemon, and its client program.
#[derive(Debug)]
pub(crate) struct Docker {
    daemon: Daemon,
    docker: PathBuf,
}

impl Docker {
    /// Starts a daemon with a `daemon.json` and waits until it answers. It creates no bridge and no
    /// firewall rules.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub(crate) fn start(dockerd: &Path, docker: &Path, daemon_json: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("daemon.json"), daemon_json).expect("write Docker's configuration");
        let flag = |name: &str, value: &str| PathBuf::from(format!("--{name}={value}"));
        let path_flag = |name: &str, file: &str| flag(name, &path(file).display().to_string());
        let arguments = [
            path_flag("config-file", "daemon.json"),
            path_flag("data-root", "data"),
            path_flag("exec-root", "exec"),
            path_flag("pidfile", "pid"),
            flag("host", &format!("unix://{}", path("sock").display())),
            flag("bridge", "none"),
            flag("iptables", "false"),
            flag("ip6tables", "false"),
            flag("storage-driver", "vfs"),
        ];
        let daemon = Daemon::start(dockerd, &arguments, dir);
        let this = Self {
            daemon,
            docker: docker.to_owned(),
        };
        this.daemon
            .wait_until("Docker answers", || this.run(&["version"]));
        this
    }

    /// Pulls an image and returns its digest.
    ///
    /// # Errors
    /// Docker's output.
    pub(crate) fn pull(&self, image: &str) -> Result<String, String> {
        self.run(&["pull", image])?;
        let digests = self.run(&[
            "image",
            "inspect",
            "--format",
            "{{index .RepoDigests 0}}",
            image,
        ])?;
        let digest = digests
            .trim()
            .rsplit_once('@')
            .map(|(_, digest)| digest.to_owned());
        digest.ok_or_else(|| format!("no digest in {digests}"))
    }

    /// Pushes an image under another name.
    ///
    /// # Errors
    /// Docker's output.
    pub(crate) fn push(&self, image: &str, target: &str) -> Result<(), String> {
        self.run(&["tag", image, target])?;
        self.run(&["push", target]).map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let host = format!("unix://{}", self.daemon.dir().join("sock").display());
        tools::run(
            &self.docker,
            ["--host", &host]
                .into_iter()
                .chain(arguments.iter().copied()),
        )
    }
}
