//! A private containerd daemon: its own root, state and socket.

use std::fs;
use std::path::{Path, PathBuf};

use super::daemon::Daemon;
use super::tools;

/// The configuration of each tested version.
const VERSION_1: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
"#;
const VERSION_2: &str = r#"version = 3
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 3
  concurrent_layer_fetch_buffer = RANGE
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "native"
"#;

/// A running daemon, and its client program.
#[derive(Debug)]
pub(crate) struct Containerd {
    daemon: Daemon,
    ctr: PathBuf,
}

impl Containerd {
    /// Starts Debian's containerd, version 1, and waits until it answers.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub(crate) fn start(containerd: &Path, ctr: &Path) -> Self {
        Self::start_with(containerd, ctr, VERSION_1)
    }

    /// As [`Containerd::start`], for version 2 with its defaults.
    pub(crate) fn start_2(containerd: &Path, ctr: &Path) -> Self {
        Self::start_with(containerd, ctr, &VERSION_2.replace("RANGE", "0"))
    }

    /// As [`Containerd::start_2`], but it fetches layers in ranges of 1 MiB, three at a time.
    pub(crate) fn start_2_with_ranges(containerd: &Path, ctr: &Path) -> Self {
        Self::start_with(containerd, ctr, &VERSION_2.replace("RANGE", "1048576"))
    }

    fn start_with(containerd: &Path, ctr: &Path, version: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name);
        // Top-level keys must precede the first table.
        let folders = format!("root = {:?}\nstate = {:?}\n", path("root"), path("state"));
        let socket = format!("[grpc]\n  address = {:?}\n", path("sock"));
        fs::write(path("config.toml"), [&folders, version, &socket].concat())
            .expect("write containerd's configuration");
        let arguments = ["--config".into(), path("config.toml")];
        let daemon = Daemon::start(containerd, &arguments, dir);
        let this = Self {
            daemon,
            ctr: ctr.to_owned(),
        };
        this.daemon
            .wait_until("containerd answers", || this.ctr(["version"]).map(drop));
        this
    }

    /// Writes the hosts.toml for `registry` (host:port).
    ///
    /// # Panics
    /// If it cannot be written.
    pub(crate) fn configure_mirror(&self, registry: &str, hosts_toml: &str) {
        let dir = self.hosts_dir().join(registry);
        fs::create_dir_all(&dir).expect("create the hosts folder");
        fs::write(dir.join("hosts.toml"), hosts_toml).expect("write hosts.toml");
    }

    /// Pulls an image, through the configured mirror.
    ///
    /// # Errors
    /// The output of `ctr`.
    pub(crate) fn pull(&self, image: &str) -> Result<String, String> {
        self.pull_with(&[], image)
    }

    /// As [`Containerd::pull`], with more flags for `ctr images pull`.
    ///
    /// # Errors
    /// The output of `ctr`.
    pub(crate) fn pull_with(&self, flags: &[&str], image: &str) -> Result<String, String> {
        let hosts = self.hosts_dir().display().to_string();
        let pull = [
            "images",
            "pull",
            "--snapshotter",
            "native",
            "--hosts-dir",
            &hosts,
        ];
        self.ctr(pull.into_iter().chain(flags.iter().copied()).chain([image]))
    }

    /// The sorted digests of the daemon's content.
    ///
    /// # Panics
    /// If it does not answer.
    pub(crate) fn content(&self) -> Vec<String> {
        let listed = self.ctr(["content", "ls", "-q"]).expect("list content");
        let mut digests: Vec<_> = listed.lines().map(|line| line.trim().to_owned()).collect();
        digests.sort_unstable();
        digests
    }

    fn hosts_dir(&self) -> PathBuf {
        self.daemon.dir().join("hosts")
    }

    fn ctr<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String, String> {
        let socket = self.daemon.dir().join("sock").display().to_string();
        let arguments: Vec<_> = ["-a".to_owned(), socket]
            .into_iter()
            .chain(arguments.into_iter().map(str::to_owned))
            .collect();
        tools::run(&self.ctr, arguments)
    }
}
