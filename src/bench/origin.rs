//! An origin as a process of its own, so that what it uses can be told from what its clients use.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_common::name::{NameError, PeerId, RegionName, RepositoryName};
use reqwest::Client;
use tempfile::TempDir;

use super::process::Process;
use super::service::{ServiceProcess, Started};
use crate::cli::CommandError;
use crate::client::RegistryClient;
use crate::pki;
use crate::region::ANY_PORT;

type Failed = Box<dyn std::error::Error + Send + Sync>;

const REGION: &str = "local";
const REPOSITORY: &str = "bench";

/// A running `flotilla origin`, which lives no longer than this, with the files that it wrote.
#[derive(Debug)]
pub(super) struct OriginProcess {
    service: ServiceProcess,
    base: String,
    http: Client,
    storage: Option<PathBuf>,
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
        let service =
            ServiceProcess::start(command.args(["--storage", &storage]), Started::ORIGIN).await;
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
    pub(super) fn process(&self) -> Process {
        self.service.process()
    }

    /// The folder of its storage, if that is one.
    pub(super) fn storage(&self) -> Option<&Path> {
        self.storage.as_deref()
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        self.service.log()
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
        Ok(RegistryClient::with_http(
            self.http.clone(),
            self.base.clone(),
            repository,
        ))
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
    command
        .arg("origin")
        .args(["--listen", &ANY_PORT.to_string(), "--region", REGION])
        .arg("--seal-key");
    command.arg(pki.join(format!("{REGION}.seal.key")));
    if tls {
        let server = ANY_PORT.ip().to_string();
        let issue = Command::new(&program)
            .args(["pki", "issue", "--server", &server, "--dir"])
            .arg(&pki)
            .output()?;
        if !issue.status.success() {
            return Err(String::from_utf8_lossy(&issue.stderr).into());
        }
        command
            .arg("--tls-cert")
            .arg(pki.join(format!("{server}.pem")));
        command
            .arg("--tls-key")
            .arg(pki.join(format!("{server}.key")));
        command.arg("--tls-ca").arg(pki.join("ca.pem"));
    }
    Ok((http, command))
}
