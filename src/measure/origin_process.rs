//! An origin as a child process, so that its resource usage is separate from its clients'.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_common::name::{NameError, PeerId, RegionName, RepositoryName};
use reqwest::Client;
use tempfile::TempDir;

use super::process::Process;
use super::service_process::{BoxError, ListeningEvent, ServiceProcess};
use crate::client::RegistryClient;
use crate::command::CommandError;
use crate::pki;
use crate::region::ANY_PORT;

const REGION: &str = "local";
const REPOSITORY: &str = "bench";

/// A running `flotilla origin`; dropping it ends the process and deletes its files.
#[derive(Debug)]
pub struct OriginProcess {
    service: ServiceProcess,
    base: String,
    http: Client,
    storage: Option<PathBuf>,
    _dir: TempDir,
}

/// How an origin process is started.
#[derive(Clone, Debug)]
pub struct OriginProcessPlan {
    /// The `flotilla` program.
    pub program: PathBuf,
    /// The URL of its storage; `None` for a folder that is deleted afterwards.
    pub storage: Option<String>,
    /// Whether it serves HTTPS.
    pub tls: bool,
}

impl OriginProcessPlan {
    /// Plain HTTP, on a temporary folder.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            storage: None,
            tls: false,
        }
    }
}

impl OriginProcess {
    /// Starts an origin and waits until it listens.
    ///
    /// # Errors
    /// If it does not start, with its log.
    pub async fn start(plan: OriginProcessPlan) -> Result<Self, CommandError> {
        let failed = |error: BoxError| CommandError::failed("start an origin", error);
        let dir = tempfile::tempdir().map_err(|error| failed(error.into()))?;
        let folder = dir.path().join("storage");
        let storage = match &plan.storage {
            Some(url) => url.clone(),
            None => {
                std::fs::create_dir(&folder).map_err(|error| failed(error.into()))?;
                format!("file://{}", folder.display())
            }
        };
        let (http, mut command) = client_and_command(&plan, dir.path()).map_err(failed)?;
        command.args(["--storage", &storage]);
        let service = ServiceProcess::start(&mut command, ListeningEvent::ORIGIN).await;
        let service = service.map_err(|error| failed(error.into()))?;
        let scheme = if plan.tls { "https" } else { "http" };
        let base = format!("{scheme}://{}", service.address());
        let storage = plan.storage.is_none().then_some(folder);
        Ok(Self {
            service,
            base,
            http,
            storage,
            _dir: dir,
        })
    }

    /// Its process.
    pub fn process(&self) -> Process {
        self.service.process()
    }

    /// The folder of its storage, unless the plan named a storage.
    pub fn storage(&self) -> Option<&Path> {
        self.storage.as_deref()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// An HTTP client that trusts its certificate.
    pub const fn http(&self) -> &Client {
        &self.http
    }

    /// Its base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The URL of `path` below the repository of [`Self::client`].
    pub fn url(&self, path: &str) -> String {
        format!("{}/v2/{REPOSITORY}/{path}", self.base)
    }

    /// A client of one of its repositories.
    ///
    /// # Errors
    /// Never: the repository's name is valid.
    pub fn client(&self) -> Result<RegistryClient, CommandError> {
        let repository: RepositoryName = REPOSITORY
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the repository", error))?;
        Ok(RegistryClient::with_http(
            self.http.clone(),
            self.base.clone(),
            repository,
        ))
    }
}

/// Creates a fleet's keys in `dir`, an HTTP client that trusts them, and the command that runs an
/// origin with them.
fn client_and_command(plan: &OriginProcessPlan, dir: &Path) -> Result<(Client, Command), BoxError> {
    let region: RegionName = REGION.parse()?;
    let pki = dir.join("pki");
    let fleet = pki::open_or_init(&pki, &region)?;
    let client: PeerId = "client".parse()?;
    let http = Client::builder()
        .tls_backend_preconfigured(fleet.peer(&client)?.https_client()?)
        .no_proxy()
        .http1_only()
        .build()?;
    let mut command = Command::new(&plan.program);
    command
        .arg("origin")
        .args(["--listen", &ANY_PORT.to_string(), "--region", REGION])
        .arg("--seal-key")
        .arg(pki.join(format!("{REGION}.seal.key")));
    if plan.tls {
        let server = ANY_PORT.ip().to_string();
        let issue = Command::new(&plan.program)
            .args(["pki", "issue", "--server", &server, "--dir"])
            .arg(&pki)
            .output()?;
        if !issue.status.success() {
            return Err(String::from_utf8_lossy(&issue.stderr).into());
        }
        command
            .arg("--tls-cert")
            .arg(pki.join(format!("{server}.pem")))
            .arg("--tls-key")
            .arg(pki.join(format!("{server}.key")))
            .arg("--tls-ca")
            .arg(pki.join("ca.pem"));
    }
    Ok((http, command))
}
