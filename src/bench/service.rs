//! A service as a process of its own, which says in its log where it listens, and lives no longer
//! than what holds it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::process::Process;

/// Far more than any needs; the probe of a remote storage is in it.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines of a log that are shown if its service fails.
const LOG_LINES: usize = 20;

/// A running service.
#[derive(Debug)]
pub(super) struct ServiceProcess {
    child: Child,
    address: SocketAddr,
    log: Log,
}

/// Why a service does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{0}")]
    Spawn(#[from] std::io::Error),
    #[error("it ended; its log:\n{log}")]
    Ended { log: String },
    #[error("it does not listen within {START_TIMEOUT:?}; its log:\n{log}")]
    Late { log: String },
}

impl ServiceProcess {
    /// Runs a command of this program, and waits until its log says where it listens.
    pub(super) async fn start(command: &mut Command, said: Started) -> Result<Self, StartError> {
        command
            .env("FLOTILLA_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (log, (started, address)) = (Log::default(), oneshot::channel());
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            std::thread::spawn(move || log.follow(stderr, said, started));
        }
        // From here on the child ends with it, whatever goes wrong.
        let mut service = Self {
            child,
            address: SocketAddr::from(([0; 4], 0)),
            log,
        };
        match timeout(START_TIMEOUT, address).await {
            Ok(Ok(address)) => service.address = address,
            Ok(Err(_)) => return Err(StartError::Ended { log: service.log() }),
            Err(_) => return Err(StartError::Late { log: service.log() }),
        }
        Ok(service)
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(super) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        self.log.tail()
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The line of a log that says where a service listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    message: &'static str,
    address: &'static str,
}

impl Started {
    /// A peer's, with its mirror.
    pub(super) const PEER: Self = Self {
        message: "peer started",
        address: "mirror",
    };
    /// An origin's.
    pub(super) const ORIGIN: Self = Self {
        message: "origin started",
        address: "address",
    };

    fn address_in(self, line: &str) -> Option<SocketAddr> {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event.get("message")? == self.message)
            .then(|| event.get(self.address)?.as_str()?.parse().ok())?
    }
}

/// The last lines of a log.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    /// Reads a log to its end, and tells where its service listens.
    fn follow(&self, stderr: ChildStderr, said: Started, started: oneshot::Sender<SocketAddr>) {
        let mut started = Some(started);
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(address) = said.address_in(&line)
                && let Some(started) = started.take()
            {
                // Nobody waits any more if it took too long.
                let _ = started.send(address);
            }
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
