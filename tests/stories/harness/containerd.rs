//! A containerd daemon of a story's own: private root, state and socket, ended with the story.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools;

/// Time that the daemon has until its socket answers.
const START_BOUND: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A running daemon and its client program.
#[derive(Debug)]
pub(crate) struct Containerd {
    daemon: Child,
    ctr: PathBuf,
    dir: TempDir,
}

impl Containerd {
    /// Starts a daemon and waits until it answers.
    ///
    /// # Panics
    /// If it does not come up; with its log.
    pub(crate) fn start(containerd: &Path, ctr: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {:?}\n",
            path("root"),
            path("state"),
            path("sock"),
        );
        fs::write(path("config.toml"), config).expect("write containerd's configuration");
        let log = File::create(path("log")).expect("create containerd's log");
        let daemon = Command::new(containerd)
            .arg("--config")
            .arg(path("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start containerd");
        let this = Self { daemon, ctr: ctr.to_owned(), dir };
        let start = Instant::now();
        while let Err(message) = this.ctr(["version"]) {
            assert!(start.elapsed() < START_BOUND, "containerd does not answer: {message}\n{}", this.log());
            thread::sleep(POLL_EVERY);
        }
        this
    }

    /// Writes the hosts.toml for `registry` (host:port) where this daemon's pulls look for it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub(crate) fn configure_mirror(&self, registry: &str, hosts_toml: &str) {
        let dir = self.hosts_dir().join(registry);
        fs::create_dir_all(&dir).expect("create the hosts folder");
        fs::write(dir.join("hosts.toml"), hosts_toml).expect("write hosts.toml");
    }

    /// Pulls an image as the mirror's configuration says.
    ///
    /// # Errors
    /// What `ctr` printed.
    pub(crate) fn pull(&self, image: &str) -> Result<String, String> {
        let hosts = self.hosts_dir().display().to_string();
        self.ctr(["images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts, image])
    }

    /// The digests of all content that the daemon holds, sorted.
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
        self.dir.path().join("hosts")
    }

    fn ctr<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String, String> {
        let socket = self.dir.path().join("sock").display().to_string();
        let arguments: Vec<_> =
            ["-a".to_owned(), socket].into_iter().chain(arguments.into_iter().map(str::to_owned)).collect();
        tools::run(&self.ctr, arguments)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It is ours, and the folder goes with it: nothing to save. An error means that it has ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
