//! A service as a child process on a host: it can be killed, suspended, terminated, and started
//! again with the same address and folder.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use flotilla::client::{ClientError, http_client};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::error::LabError;
use crate::host::Host;
use crate::link::VirtualLink;
use crate::service_log;

/// From the start of the process until it is healthy; generous.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the process; longer than any drain.
const END_TIMEOUT: Duration = Duration::from_secs(40);
/// For one HTTP request to the service.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a service is started.
#[derive(Clone, Debug)]
pub(crate) struct ServiceCommand {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// A URL that answers 200 when the service is healthy.
    pub(crate) health_url: String,
    pub(crate) log: PathBuf,
}

/// A service, running or stopped.
#[derive(Debug)]
pub struct Service {
    command: ServiceCommand,
    host: Host,
    link: Option<VirtualLink>,
    /// Not shared between services: mirrors on different hosts have the same address, and a client
    /// pools connections by address.
    http: Client,
    /// `None` if the service was stopped on purpose.
    child: Option<Child>,
}

impl Service {
    /// Creates a stopped service.
    pub(crate) fn new(
        command: ServiceCommand,
        host: Host,
        link: Option<VirtualLink>,
    ) -> Result<Self, LabError> {
        Ok(Self {
            command,
            host,
            link,
            http: http_client()?,
            child: None,
        })
    }

    /// The service's name, which is also that of its host.
    pub fn name(&self) -> &str {
        &self.command.name
    }

    /// The host that it runs on.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The link of its host.
    ///
    /// # Errors
    /// If the laboratory is on loopback.
    pub fn link(&self) -> Result<&VirtualLink, LabError> {
        let action = format!("use the link of {}", self.command.name);
        self.link
            .as_ref()
            .ok_or_else(|| LabError::failed(action, "loopback has no links"))
    }

    /// Starts it, with the same arguments every time, and waits until it is healthy.
    ///
    /// # Errors
    /// If it does not become healthy, with its log.
    pub async fn start(&mut self) -> Result<(), LabError> {
        self.spawn()?;
        self.wait_until_healthy().await
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&mut self) -> Result<(), LabError> {
        let path = &self.command.log;
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.map_err(LabError::io("open the log", path))?;
        let stdout = log
            .try_clone()
            .map_err(LabError::io("share the log", path))?;
        let mut command = self.host.command(&self.command.program);
        command
            .args(&self.command.arguments)
            .envs(self.command.environment.iter().cloned())
            .stdout(stdout)
            .stderr(log);
        self.child = Some(self.host.start_process(command)?);
        Ok(())
    }

    /// Waits until its health check succeeds.
    ///
    /// # Errors
    /// If it ends, or the check still fails after 30 s, with its log.
    pub async fn wait_until_healthy(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = self.exit_status() {
                return Err(self.error(format!("ended with {status} during its start")));
            }
            if self.get(&self.command.health_url).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.error(format!("is not healthy after {START_TIMEOUT:?}")));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a GET request from its host, and returns the body.
    pub(crate) async fn get(&self, url: &str) -> Result<String, ClientError> {
        let request = self.http.get(url).timeout(REQUEST_TIMEOUT);
        let response = async move { request.send().await?.error_for_status()?.text().await };
        let body = self.host.spawn(response).await?;
        body.map_err(|source| ClientError::Http {
            action: format!("get {url} from {}", self.command.name),
            source,
        })
    }

    /// Kills it with SIGKILL: it cannot save state or close connections.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if the child has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Suspends it with SIGSTOP: its connections stay open, and it does not respond.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    /// Reverts [`Service::suspend`] with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends SIGTERM and waits until it ends.
    ///
    /// # Errors
    /// If it does not end within 40 s: it is killed then.
    pub async fn terminate(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(self.error(format!("is still running {END_TIMEOUT:?} after SIGTERM")));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self
            .child
            .as_ref()
            .and_then(|child| i32::try_from(child.id()).ok())
            .and_then(Pid::from_raw);
        if let Some(id) = id {
            // The child was not waited for, so its id is not reused. The call fails if the child
            // has ended.
            let _ = kill_process(id, signal);
        }
    }

    /// The exit status; `None` while it runs, or after it was stopped on purpose.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        service_log::tail(&self.command.log)
    }

    fn error(&self, problem: String) -> LabError {
        LabError::Service {
            name: self.command.name.clone(),
            problem,
            log: self.log(),
        }
    }

    /// Errors in its log that are not `expected`, and its unexpected end.
    pub(crate) fn unexpected_errors(&mut self, expected: &[String]) -> Vec<String> {
        let mut errors = service_log::unexpected_errors(&self.command.log, expected);
        if let Some(status) = self.exit_status() {
            errors.push(format!("ended unexpectedly with {status}"));
        }
        errors
            .into_iter()
            .map(|text| format!("{}: {text}", self.command.name))
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::network::{Network, NetworkKind};

    #[test]
    fn services_on_loopback_have_no_link() {
        let mut network = Network::start(NetworkKind::Loopback, 1).unwrap();
        let (host, link) = network.add_host("a", 0).unwrap();
        let command = ServiceCommand {
            name: "a".to_owned(),
            program: PathBuf::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            health_url: String::new(),
            log: PathBuf::new(),
        };
        let service = Service::new(command, host, link).unwrap();
        let error = service.link().unwrap_err().to_string();
        assert!(error.contains("loopback has no links"), "{error}");
    }
}
