//! A third-party daemon that runs in a temporary folder, and ends with the test.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools;

/// From the start until the daemon answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL: a daemon with child processes needs the time to end them.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts a program, with its log in `dir`.
    ///
    /// # Panics
    /// If it does not start.
    pub(crate) fn start(program: &Path, arguments: &[PathBuf], dir: TempDir) -> Self {
        let log = File::create(dir.path().join("log")).expect("create the daemon's log");
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        Self { process, dir }
    }

    /// The daemon's folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until `attempt` succeeds.
    ///
    /// # Panics
    /// If it does not within 30 s, with the log.
    pub(crate) fn wait_until<T>(&self, what: &str, attempt: impl Fn() -> Result<T, String>) -> T {
        let start = Instant::now();
        loop {
            match attempt() {
                Ok(value) => return value,
                Err(message) => {
                    assert!(
                        start.elapsed() < START_TIMEOUT,
                        "timeout while waiting until {what}: {message}\n{}",
                        self.log()
                    );
                }
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal, such as `-STOP`.
    ///
    /// # Errors
    /// If the daemon has ended.
    pub(crate) fn signal(&self, signal: &str) -> Result<(), String> {
        let arguments = [signal, &self.process.id().to_string()];
        tools::run(Path::new("kill"), arguments).map(drop)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// Free addresses, for programs that cannot choose one and report it.
///
/// # Panics
/// If there are none.
pub(crate) fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a free port");
    // All at once, so that they differ.
    let listeners: [TcpListener; N] = std::array::from_fn(bind);
    listeners.map(|listener| listener.local_addr().expect("the bound address"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // All of these fail only if the daemon has ended already.
        let _ = self.signal("-TERM");
        let start = Instant::now();
        while start.elapsed() < END_TIMEOUT && matches!(self.process.try_wait(), Ok(None)) {
            thread::sleep(POLL_INTERVAL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
