//! A service as a process of its own: started, made to wait, frozen, killed, started again on the
//! same address and folder.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::{Host, LabError, log};
use crate::client::{ClientError, http_client};

/// From the start of a process to its first good answer; far more than any needs.
const START_BOUND: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of a process; more than any drain takes.
const END_BOUND: Duration = Duration::from_secs(40);
/// From a question about its state to the answer.
const ANSWER_BOUND: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// How a service is run.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    /// Answers 200 once the service works.
    pub(super) health_url: String,
    pub(super) log: PathBuf,
}

/// A service that runs, or did.
#[derive(Debug)]
pub struct Service {
    recipe: Recipe,
    host: Host,
    /// Its own: mirrors on different hosts have the same address, and connections are kept.
    http: Client,
    /// `None` while it is meant to be down.
    child: Option<Child>,
}

impl Service {
    /// Not started yet.
    pub(super) fn new(recipe: Recipe, host: Host) -> Result<Self, LabError> {
        Ok(Self {
            recipe,
            host,
            http: http_client()?,
            child: None,
        })
    }

    /// Its name, that of its host too.
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The host it runs on.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it, where and how it ran before, and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up; with its log.
    pub async fn start(&mut self) -> Result<(), LabError> {
        self.launch()?;
        self.ready().await
    }

    /// Starts it without waiting.
    pub(super) fn launch(&mut self) -> Result<(), LabError> {
        let Recipe {
            program,
            arguments,
            environment,
            log: path,
            ..
        } = &self.recipe;
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.map_err(LabError::io("open the log", path))?;
        let mut command = self.host.command(program);
        let stdout = log
            .try_clone()
            .map_err(LabError::io("share the log", path))?;
        command
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdout(stdout)
            .stderr(log);
        self.child = Some(self.host.start_process(command)?);
        Ok(())
    }

    /// Waits until it answers that it is well.
    ///
    /// # Errors
    /// If it ends instead, or does not answer in time.
    pub async fn ready(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + START_BOUND;
        loop {
            if let Some(status) = self.ended() {
                return Err(self.complain(format!("ended with {status} instead of starting")));
            }
            if self.is_well().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.complain(format!("is not well after {START_BOUND:?}")));
            }
            sleep(POLL_EVERY).await;
        }
    }

    async fn is_well(&self) -> bool {
        self.get(&self.recipe.health_url).await.is_ok()
    }

    /// Asks for a text, on its host.
    pub(super) async fn get(&self, url: &str) -> Result<String, ClientError> {
        let request = self.http.get(url).timeout(ANSWER_BOUND);
        let asked = async move { request.send().await?.error_for_status()?.text().await };
        let answer = self.host.spawn(asked).await?;
        answer.map_err(|source| ClientError::Http {
            action: format!("ask {}", self.recipe.name),
            source,
        })
    }

    /// Kills it (SIGKILL): nothing is saved, nobody is told.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Freezes it (SIGSTOP): it keeps its connections and says nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time; it is killed then.
    pub async fn terminate(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + END_BOUND;
        loop {
            if let Some(status) = self.ended() {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(self.complain(format!("has not ended {END_BOUND:?} after SIGTERM")));
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Its process; `None` if it is down.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) {
        let id = self
            .process_id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        if let Some(id) = id {
            // It has not been waited for, so the number is still its own; it may have ended,
            // though.
            let _ = kill_process(id, signal);
        }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        log::tail(&self.recipe.log)
    }

    fn complain(&self, what: String) -> LabError {
        LabError::Service {
            name: self.recipe.name.clone(),
            what,
            log: self.log(),
        }
    }

    /// What nobody did and nobody expected: its death, errors in its log.
    pub(super) fn complaints(&mut self, expected: &[String]) -> Vec<String> {
        let mut complaints = log::unexpected(&self.recipe.log, expected);
        if let Some(status) = self.ended() {
            complaints.push(format!("ended by itself with {status}"));
        }
        complaints
            .into_iter()
            .map(|text| format!("{}: {text}", self.recipe.name))
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
