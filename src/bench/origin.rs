//! An origin as a process of its own, so that what it uses can be told from what its clients use.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flotilla_common::name::{NameError, PeerId, RegionName, RepositoryName};
use reqwest::Client;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::peers::{Log, Started};
use super::process::Process;
use crate::cli::CommandError;
use crate::client::RegistryClient;
use crate::pki;
use crate::region::ANY_PORT;

type Failed = Box<dyn std::error::Error + Send + Sync>;

const REGION: &str = "local";
const REPOSITORY: &str = "bench";
/// The probe of a remote storage is in it.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running `flotilla origin`, which lives no longer than this, with the files that it wrote.
#[derive(Debug)]
pub(super) struct OriginProcess {
    child: Child,
    base: String,
    http: Client,
    storage: Option<PathBuf>,
    log: Log,
    _dir: TempDir,
}

/// How an origin is started.
#[derive(Clone, Debug, Default)]
pub(super) struct OriginPlan {
    /// Its storage; a folder that is deleted afterwards without it.
    pub(super) storage: Option<String>,
    /// Whether it speaks HTTPS.
    pub(super) tls: bool,
}

impl OriginProcess {
    /// Starts an origin and waits until it listens.
    pub(super) async fn start(plan: OriginPlan) -> Result<Self, CommandError> {
        let failed = |error: Failed| CommandError::failed("start an origin", error);
        let dir = tempfile::tempdir().map_err(|error| failed(error.into()))?;
        let folder = dir.path().join("storage");
        let storage = match &plan.storage {
            Some(url) => url.clone(),
            None => {
                std::fs::create_dir(&folder).map_err(|error| failed(error.into()))?;
                format!("file://{}", folder.display())
            }
        };
        let (http, mut command) = prepared(dir.path(), plan.tls).map_err(failed)?;
        command.args(["--storage", &storage]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|error| failed(error.into()))?;
        let (log, (started, address)) = (Log::default(), oneshot::channel());
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            std::thread::spawn(move || log.follow(stderr, Started::ORIGIN, started));
        }
        let storage = plan.storage.is_none().then_some(folder);
        // From here on the child ends with it, whatever goes wrong.
        let mut origin = Self { child, base: String::new(), http, storage, log, _dir: dir };
        let scheme = if plan.tls { "https" } else { "http" };
        match timeout(START_TIMEOUT, address).await {
            Ok(Ok(address)) => origin.base = format!("{scheme}://{address}"),
            _ => return Err(failed(format!("it does not listen; its log:\n{}", origin.log.tail()).into())),
        }
        Ok(origin)
    }

    /// Its process.
    pub(super) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// The folder of its storage, if that is one.
    pub(super) fn storage(&self) -> Option<&Path> {
        self.storage.as_deref()
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        self.log.tail()
    }

    /// An HTTP client that trusts it.
    pub(super) const fn http(&self) -> &Client {
        &self.http
    }

    /// Where it has something of the repository of [`Self::client`].
    pub(super) fn url(&self, what: &str) -> String {
        format!("{}/v2/{REPOSITORY}/{what}", self.base)
    }

    /// A client of it.
    pub(super) fn client(&self) -> Result<RegistryClient, CommandError> {
        let repository: RepositoryName = REPOSITORY
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the repository", error))?;
        Ok(RegistryClient::with_http(self.http.clone(), self.base.clone(), repository))
    }
}

impl Drop for OriginProcess {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes keys, and what depends on them: a client, and the command of an origin.
fn prepared(dir: &Path, tls: bool) -> Result<(Client, Command), Failed> {
    let (name, pki): (RegionName, _) = (REGION.parse()?, dir.join("pki"));
    let fleet = pki::open_or_init(&pki, &name)?;
    let someone: PeerId = "client".parse()?;
    let http = Client::builder()
        .tls_backend_preconfigured(fleet.peer(&someone)?.https_client()?)
        .no_proxy()
        .http1_only()
        .build()?;
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command.arg("origin").args(["--listen", &ANY_PORT.to_string(), "--region", REGION]).arg("--seal-key");
    command.arg(pki.join(format!("{REGION}.seal.key"))).env("FLOTILLA_LOG", "info");
    if tls {
        let server = ANY_PORT.ip().to_string();
        let issue =
            Command::new(&program).args(["pki", "issue", "--server", &server, "--dir"]).arg(&pki).output()?;
        if !issue.status.success() {
            return Err(String::from_utf8_lossy(&issue.stderr).into());
        }
        command.arg("--tls-cert").arg(pki.join(format!("{server}.pem")));
        command.arg("--tls-key").arg(pki.join(format!("{server}.key")));
        command.arg("--tls-ca").arg(pki.join("ca.pem"));
    }
    Ok((http, command))
}
