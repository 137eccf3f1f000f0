//! A service as a child process that is killed when its handle is dropped. The service chooses its
//! port itself and logs it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::process::Process;

/// Generous: it includes the probe of a remote storage.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Log lines that are kept for error messages.
const LOG_LINES: usize = 20;

/// The error of a step of a start.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A running service.
#[derive(Debug)]
pub(super) struct ServiceProcess {
    child: Child,
    addresses: Addresses,
    log: LogTail,
}

/// Why a service did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{0}")]
    Spawn(#[from] std::io::Error),
    #[error("the process ended; its log:\n{log}")]
    Ended { log: String },
    #[error("the process is not listening after {START_TIMEOUT:?}; its log:\n{log}")]
    Timeout { log: String },
}

impl ServiceProcess {
    /// Starts `command`, which runs a service, and waits until its log has `listening`.
    pub(super) async fn start(
        command: &mut Command,
        listening: ListeningEvent,
    ) -> Result<Self, StartError> {
        command
            .env("FLOTILLA_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = LogTail::default();
        let (sender, addresses) = oneshot::channel();
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            std::thread::spawn(move || log.follow(stderr, listening, sender));
        }
        // From here on, an early return drops the handle and kills the child.
        let mut service = Self {
            child,
            addresses: Addresses::NONE,
            log,
        };
        match timeout(START_TIMEOUT, addresses).await {
            Ok(Ok(addresses)) => service.addresses = addresses,
            Ok(Err(_)) => return Err(StartError::Ended { log: service.log() }),
            Err(_) => return Err(StartError::Timeout { log: service.log() }),
        }
        Ok(service)
    }

    /// The address that it listens on for its clients.
    pub(super) const fn address(&self) -> SocketAddr {
        self.addresses.clients
    }

    /// The address that it listens on for operators.
    pub(super) const fn admin_address(&self) -> SocketAddr {
        self.addresses.operators
    }

    /// Its process.
    pub(super) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// The last lines of its log.
    pub(super) fn log(&self) -> String {
        self.log.text()
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Both fail only if the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The addresses that a service listens on.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    clients: SocketAddr,
    operators: SocketAddr,
}

impl Addresses {
    /// Of a service that does not listen yet.
    const NONE: Self = {
        let none = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            clients: none,
            operators: none,
        }
    };
}

/// The log event with the addresses that a service listens on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListeningEvent {
    message: &'static str,
    address_field: &'static str,
}

impl ListeningEvent {
    /// A peer's, with the address of its mirror.
    pub(super) const PEER: Self = Self {
        message: "peer started",
        address_field: "mirror",
    };
    /// An origin's.
    pub(super) const ORIGIN: Self = Self {
        message: "origin started",
        address_field: "address",
    };
    /// A tracker's.
    pub(super) const TRACKER: Self = Self {
        message: "tracker started",
        address_field: "address",
    };

    fn parse(self, line: &str) -> Option<Addresses> {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        if event.get("message")? != self.message {
            return None;
        }
        let address = |field| event.get(field)?.as_str()?.parse().ok();
        Some(Addresses {
            clients: address(self.address_field)?,
            operators: address("admin")?,
        })
    }
}

/// The last lines of a log. Clones share them.
#[derive(Clone, Debug, Default)]
struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    /// Reads a log to its end and sends the addresses of the first `listening` event.
    fn follow(
        &self,
        stderr: ChildStderr,
        listening: ListeningEvent,
        sender: oneshot::Sender<Addresses>,
    ) {
        let mut sender = Some(sender);
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(addresses) = listening.parse(&line)
                && let Some(sender) = sender.take()
            {
                // Fails if the receiver has timed out.
                let _ = sender.send(addresses);
            }
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
