//! Other people's daemon of a story's own: it lives in a folder, writes its log there, and ends
//! with the story.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools;

/// Time that a daemon has until it answers.
const START_BOUND: Duration = Duration::from_secs(30);
/// Time that it has to end by itself; one that has children of its own ends them then.
const END_BOUND: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts a program that lives in `dir`.
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

    /// Where it lives.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until `attempt` succeeds.
    ///
    /// # Panics
    /// If it does not in time; with the log.
    pub(crate) fn wait_until<T>(&self, what: &str, attempt: impl Fn() -> Result<T, String>) -> T {
        let start = Instant::now();
        loop {
            match attempt() {
                Ok(value) => return value,
                Err(message) => {
                    assert!(
                        start.elapsed() < START_BOUND,
                        "never: {what}: {message}\n{}",
                        self.log()
                    );
                }
            }
            thread::sleep(POLL_EVERY);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is ours, and the folder goes with it: nothing to save. An error means that it has
        // ended already.
        let _ = tools::run(Path::new("kill"), ["-TERM", &self.process.id().to_string()]);
        let start = Instant::now();
        while start.elapsed() < END_BOUND && matches!(self.process.try_wait(), Ok(None)) {
            thread::sleep(POLL_EVERY);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
